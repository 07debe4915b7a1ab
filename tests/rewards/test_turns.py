"""Episodes by hand: the worked examples, each reward function, who is asked."""

import itertools
import math
from collections import Counter
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_fast.rewards import make_reward_function
from srt_fast.rewards.choice import choose
from srt_fast.rewards.joining import join_turns
from srt_fast.rewards.turns import CORRECT, WRONG, Ask, Turn, turns_of
from srt_fast.sampling.base import Completion, pack_completions
from srt_fast.types import Batch, Groups, PlayedTurn, Reward
from srt_kernels import group_advantage
from srt_kernels.answers.canonical import answer_key
from support.paths import ROOT
from support.rollouts import EPISODES, make_groups

A, B, C = 11, 22, 33


# ---- the worked examples ----


def episode_batch(
    episode: list[Groups], rewards: list[Reward], conversations: list[int], tokens: int
) -> Batch:
    """A step of these turns, with completions of so many tokens.

    conversations: how many each turn has, with equally many rollouts.
    """
    played = []
    for groups, count in zip(episode, conversations, strict=True):
        rollouts = len(groups.keys)
        completion = Completion(torch.zeros(tokens, dtype=torch.int64), torch.zeros(tokens), False)
        played.append(
            PlayedTurn(
                conversations=[],
                prompts=[0] * rollouts,
                parents=[] if groups.parent is None else groups.parent.tolist(),
                rollouts=pack_completions(
                    [completion] * rollouts, [[1]] * count, samples=rollouts // count
                ),
                groups=groups,
            )
        )
    return Batch(
        prompts=None,
        rollouts=played[0].rollouts,
        groups=episode[0],
        reward=rewards[0],
        rounds=1,
        later=played[1:],
        later_rewards=rewards[1:],
    )


def test_self_correction_in_numbers():
    """The worked example of turns.py. 131 is in no vote of the teacher."""
    right, wrong = answer_key("132"), answer_key("131")
    first = make_groups(
        [right, right, wrong, right], [0, 4], teacher_keys=[right], cu_teacher=[0, 1]
    )
    second = make_groups([right, wrong, right, right], [0, 4], parent=[0, 1, 2, 3])
    function = make_reward_function("self_correct", {"alpha": 1, "labels": "ema"})
    rewards = function([first, second])
    assert [reward.rewards.tolist() for reward in rewards] == [[1, 1, 0, 1], [1, -1, 2, 1]]

    batch = episode_batch([first, second], rewards, [1, 4], tokens=10)
    rollouts, reward = join_turns(batch, ())
    assert len(rollouts.tokens) == 80
    assert rollouts.cu_groups.tolist() == [0, 4, 5, 6, 7, 8]  # prompts: the second turn has four
    assert reward.cu_groups.tolist() == [0, 4, 8]
    advantages = group_advantage(reward.rewards, reward.cu_groups, kind="mean")
    assert advantages.tolist() == [1 / 4, 1 / 4, -3 / 4, 1 / 4, 1 / 4, -7 / 4, 5 / 4, 1 / 4]
    assert reward.weights is None
    _, weighted = join_turns(batch, (0.0, 2.0))
    assert weighted.weights.tolist() == [0.0] * 4 + [2.0] * 4


SOLUTIONS = make_groups([A, A, A, B], [0, 4])
VERDICTS = [CORRECT, CORRECT, WRONG, WRONG, CORRECT, WRONG]


@pytest.mark.parametrize("parent", [[0, 1, 2, 3, 3, 3], [0, 0, 0, 3, 3, 3]])
def test_verdicts_in_numbers(parent):
    """The worked example of turns.py, whichever solutions of the majority are asked about."""
    verdicts = make_groups(VERDICTS, [0, 3, 6], parent=parent)
    solve, verify = make_reward_function("coverl", {})([SOLUTIONS, verdicts])
    assert verify.rewards.tolist() == [1, 1, 0, 1, 0, 1]
    assert solve.rewards.tolist() == [1, 1, 1, 0]
    assert solve.keep.all() and verify.keep.all()
    advantages = group_advantage(verify.rewards, verdicts.cu_groups, kind="mean")
    torch.testing.assert_close(advantages, torch.tensor([1, 1, -2, 1, -2, 1]) / 3)

    rejected = make_groups([WRONG, *VERDICTS[1:]], [0, 3, 6], parent=parent)  # 1 to 2
    solve, verify = make_reward_function("coverl", {})([SOLUTIONS, rejected])
    assert not solve.keep.any() and not verify.keep.any()


def test_who_is_asked_in_the_examples():
    """Three that agree once each, and the dissenter three times; with room for four verdicts two
    and two.
    """
    keys, agrees = SOLUTIONS.keys.tolist(), SOLUTIONS.vote.rewards > 0
    pairs = make_reward_function("coverl", {}).turns[1]
    assert choose(pairs, keys, agrees, [0] * 4) == [[0], [1], [2], [3], [3], [3]]
    pairs = make_reward_function("coverl", {"limit": 4}).turns[1]
    assert choose(pairs, keys, agrees, [0] * 4) == [[0], [1], [3], [3]]


def test_a_limit_leaves_every_baseline_two_verdicts():
    """Half of 8 prompts of 6 and 2; then prompts of 1 and 7, whose room goes round."""
    keys, agrees = 8 * [*6 * [A], *2 * [B]], torch.tensor(8 * [*6 * [True], *2 * [False]])
    prompts = [place // 8 for place in range(64)]
    asked = choose(make_reward_function("coverl", {"limit": 18}).turns[1], keys, agrees, prompts)
    votes = Counter((prompts[place], keys[place]) for [place] in asked)
    assert len(votes) == 2 * 4 and sorted(votes.values()) == [*6 * [2], *2 * [3]]

    keys = [A, B, *7 * [A], B]
    agrees = torch.tensor([key == A for key in keys])
    asked = choose(
        make_reward_function("coverl", {"limit": 12}).turns[1], keys, agrees, [0, 0, *8 * [1]]
    )
    assert asked == [[0], [0], [1], [1], [2], [3], [4], [5], *4 * [[9]]]


# ---- each reward function, by hand ----

# Two prompts of 4 and 2 solutions. The vote is A for both. B and C dissent, the last is unanimous.
FIRST = ([A, A, B, C, A, A], [0, 4, 6])
VOTE = [1, 1, 0, 0, 1, 1]
# The second turn answers the solutions 0, 2, 3 and 4, a third turn what the second turn wrote.
PARENT = [0, 2, 3, 4]
ANSWERS = [B, A, 0, A]
JUDGED = [CORRECT, WRONG, CORRECT, 0]
ALL = True
# reward function, settings: keys and cu_groups of the later turns, parents; rewards, what is kept
EXPECTED = {
    ("verify", ()): ([(JUDGED, [0, 1, 2, 3, 4], PARENT)], [(VOTE, ALL), ([1, 1, 0, 0], ALL)]),
    # RISE: wrong is -1/2, no answer is -1.
    ("verify", (("wrong", -0.5), ("no_answer", -1.0))): (
        [(JUDGED, [0, 1, 2, 3, 4], PARENT)],
        [([1, 1, -0.5, -0.5, 1, 1], ALL), ([1, 1, -0.5, -1], ALL)],
    ),
    # r2 = 0 1 0 1, r1 of the parents = 1 0 0 1.
    ("self_correct", ()): (
        [(ANSWERS, [0, 3, 4], PARENT)],
        [(VOTE, ALL), ([-10, 11, 0, 1], ALL)],
    ),
    ("self_correct", (("alpha", 0),)): (
        [(ANSWERS, [0, 3, 4], PARENT)],
        [(VOTE, ALL), ([0, 1, 0, 1], ALL)],
    ),
    # Prompt 0: one "correct" on the majority. Prompt 1: none, its verdict has no answer. The
    # rejected solution 2 (verdict 1) is solved again.
    ("coverl", ()): (
        [(JUDGED, [0, 1, 2, 3, 4], PARENT), ([A, B], [0, 2], [1, 1])],
        [
            (VOTE, [1, 1, 1, 1, 0, 0]),
            ([1, 1, 0, 0], [1, 1, 1, 0]),
            ([1, 0], ALL),
        ],
    ),
    # Revisions of the critiques 0, 0, 1 and 3: right 1 0 1 1. Means 1/2, 1, none, 1; less r1 of
    # their solutions 1 0 0 1.
    ("critique", ()): (
        [([0] * 4, [0, 3, 4], PARENT), ([A, B, A, A], [0, 2, 3, 4], [0, 0, 1, 3])],
        [
            (VOTE, ALL),
            ([-0.5, 1, float("nan"), 0], [1, 1, 0, 1]),
            ([1, 0, 1, 1], ALL),
        ],
    ),
    # Of three picks two are B; 7 is no answer of the prompt. The unanimous prompt keeps its vote.
    ("select", ()): (
        [([B, 7, B, A], [0, 4], [0] * 4)],
        [([0, 0, 1, 0, 1, 1], ALL), ([1, 0, 1, 0], [0] * 4)],
    ),
    # No pick counts.
    ("select", (("samples", 2),)): (
        [([7, 0], [0, 2], [0] * 2)],
        [(VOTE, ALL), ([0, 0], [0] * 2)],
    ),
    ("self_rewarding_correction", ()): (
        [(JUDGED, [0, 3, 4], PARENT), ([A, B], [0, 2], [1, 1])],
        [(VOTE, ALL), ([1, 1, 0, 0], ALL), ([1, 0], ALL)],
    ),
    # Two problems for each prompt, the third is not answered. p = 1/2, 1 and 3/4: 1 - 2 |p - 1/2| =
    # 1, 0 and 1/2. The answers to the second are beyond the gate of 1/4.
    ("propose", ()): (
        [
            ([101, 102, 0, 103], [0, 2, 4], [0, 0, 4, 4]),
            ([A, A, B, C, A, A, A, A, B, A, B, B], [0, 4, 8, 12], [0] * 4 + [1] * 4 + [3] * 4),
        ],
        [
            (VOTE, ALL),
            ([1, 0, 0, 0.5], ALL),
            ([1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1], [1] * 4 + [0] * 4 + [1] * 4),
        ],
    ),
    # A gate of 1/10 keeps shares of 3/5 and 2/5, whatever their rounding.
    ("propose", (("gate", 0.1),)): (
        [
            ([101, 102], [0, 2], [0, 0]),
            ([A, A, A, B, B, A, A, B, 0, C], [0, 5, 10], [0] * 5 + [1] * 5),
        ],
        [(VOTE, ALL), ([0.8, 0.8], ALL), ([1, 1, 1, 0, 0, 1, 1, 0, 0, 0], ALL)],
    ),
    # A gate of 0 keeps p = 1/2 alone.
    ("propose", (("gate", 0.0),)): (
        [([101, 102], [0, 2], [0, 0]), ([A, B, A, B, B, B], [0, 2, 6], [0, 0, 1, 1, 1, 1])],
        [(VOTE, ALL), ([1, 0.5], ALL), ([1, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0])],
    ),
}


def test_every_reward_function_of_episodes_has_an_expected_episode():
    assert {kind for kind, _ in EXPECTED} == set(EPISODES)


@pytest.mark.parametrize(("kind", "params"), EXPECTED)
def test_an_episode_worked_out_by_hand(kind, params):
    """Values are sums of small integers and halves, exact in fp32; but for shares of fifths, which
    are rounded to 2^-25, with a factor of 2 and two more roundings.
    """
    later, expected = EXPECTED[kind, params]
    episode = [make_groups(*FIRST)]
    episode += [make_groups(keys, cu_groups, parent=parent) for keys, cu_groups, parent in later]
    rewards = make_reward_function(kind, dict(params))(episode)
    for reward, (values, keep) in zip(rewards, expected, strict=True):
        assert reward.rewards.dtype == torch.float32 and reward.keep.dtype == torch.bool
        target = torch.tensor(values, dtype=torch.float32)
        torch.testing.assert_close(reward.rewards, target, rtol=0, atol=2**-22, equal_nan=True)
        kept = [True] * len(values) if keep is ALL else [bool(value) for value in keep]
        assert reward.keep.tolist() == kept


def test_supervised_steps_learn_from_consistent_episodes():
    """Solution 0 is rightly accepted. Solution 2 is rightly rejected and revised to A and B: the
    verdict and the right revision count. Solution 3 is wrongly accepted.
    """
    later, _ = EXPECTED["self_rewarding_correction", ()]
    episode = [make_groups(*FIRST)]
    episode += [make_groups(keys, cu_groups, parent=parent) for keys, cu_groups, parent in later]
    rewards = make_reward_function("self_rewarding_correction", {})(episode)
    marks = [reward.supervised.int().tolist() for reward in rewards]
    assert marks == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0], [1, 0]]


@pytest.mark.parametrize("labels", ["majority", "ema", "frozen", "oracle"])
@pytest.mark.parametrize("kind", [kind for kind in EPISODES if kind != "select"])
def test_labels_come_from_their_source(kind, labels):
    """A label B: of the teacher, of the start, or of gold. The vote says A."""
    inputs = {
        "ema": {"teacher_keys": [B], "cu_teacher": [0, 1]},
        "frozen": {"start_labels": [B], "start_shares": [1.0]},
        "oracle": {"correct": [False, False, True]},
    }
    function = make_reward_function(kind, {"labels": labels})
    episode = [make_groups([A, A, B], [0, 3], **inputs.get(labels, {}))]
    episode += [make_groups([], [0], parent=[]) for _ in function.turns[1:]]
    if labels == "oracle":
        none = {"correct": torch.zeros(0, dtype=torch.bool)}
        episode[1:] = [Groups(**vars(groups) | none) for groups in episode[1:]]
    reward = function(episode)[0]
    assert reward.rewards.tolist() == ([1, 1, 0] if labels == "majority" else [0, 0, 1])


@pytest.mark.parametrize("kind", EPISODES)
def test_turns_without_rollouts_and_groups_without_answers(kind):
    function = make_reward_function(kind, {})
    episode = [make_groups([0, 0, 0], [0, 2, 3])]
    episode += [make_groups([], [0], parent=[]) for _ in function.turns[1:]]
    rewards = function(episode)
    assert [len(reward.rewards) for reward in rewards] == [3] + [0] * len(rewards[1:])
    assert (rewards[0].rewards == 0).all()


# ---- who is asked ----


@st.composite
def steps(draw):
    """Answer keys of a step's completions with their prompts, and which agree with the label."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    prompts = [prompt for prompt, size in enumerate(sizes) for _ in range(size)]
    keys = [draw(st.sampled_from([0, A, B, C, CORRECT, WRONG])) for _ in prompts]
    label = draw(st.sampled_from([A, B]))
    return keys, torch.tensor([key == label for key in keys]), prompts


@settings(max_examples=200, deadline=None)
@given(
    steps(),
    st.sampled_from(get_args(Ask)),
    st.sampled_from(["prompt", "parent", "answer"]),
    st.sampled_from([0, 4, 5, 9]),
)
def test_who_is_asked(step, ask, group, limit):
    keys, agrees, prompts = step
    turn = Turn(question="{completion}?", ask=ask, group=group, limit=limit)
    asked = choose(turn, keys, agrees, prompts)
    if limit:
        assert len(asked) <= limit
    for shown in asked:
        assert len({prompts[place] for place in shown}) == 1
    places = [place for shown in asked for place in shown]
    if not (ask == "balanced" and group == "answer"):
        assert len(set(places)) == len(places)  # nobody twice
    can_be_asked = {
        "all": list(range(len(keys))),
        "rejected": [place for place, key in enumerate(keys) if key == WRONG],
        "one_per_prompt": [prompts.index(prompt) for prompt in dict.fromkeys(prompts)],
        "new": [keys.index(key) for key in dict.fromkeys(keys) if key],
    }.get(ask)
    if can_be_asked is not None:
        assert set(places) <= set(can_be_asked)
        most = min(limit or 99, len(can_be_asked))
        whole = Counter(prompts[place] for place in can_be_asked)
        counts = Counter(prompts[place] for place in places)
        cut = [prompt for prompt in counts if counts[prompt] < whole[prompt]]
        if group == "parent":
            assert len(asked) == most
        else:  # whole prompts, but for the last one, which has at least two
            assert len(cut) <= 1 and all(counts[prompt] > 1 for prompt in cut)
            assert len(asked) in (most, most - 1)
            assert limit or len(asked) == most
    elif ask == "one_per_answer":
        for shown in asked:
            of_prompt = [
                key for key, p in zip(keys, prompts, strict=True) if p == prompts[shown[0]]
            ]
            assert sorted(keys[place] for place in shown) == sorted(set(of_prompt) - {0})
            assert len(shown) > 1
    elif group == "answer":
        for prompt in set(prompts):
            of_prompt = [place for place in places if prompts[place] == prompt]
            agreeing = [place for place in of_prompt if agrees[place]]
            dissenting = [place for place in of_prompt if not agrees[place]]
            assert len(agreeing) == len(dissenting) != 1 and len(set(dissenting)) <= 1
            rest = [
                key
                for key, p, a in zip(keys, prompts, agrees, strict=True)
                if p == prompt and not a and key
            ]
            if dissenting:
                rarest = min(rest.count(key) for key in rest)
                assert rest.count(keys[dissenting[0]]) == rarest
    else:
        most = min(limit or len(keys), len(keys))
        agreeing = int(agrees.sum())
        expected = min(agreeing, max(most // 2, most - (len(keys) - agreeing)))
        assert len(asked) == most
        assert sum(bool(agrees[place]) for place in places) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ask": "some"}, "turn: ask: expected one of all, balanced, .*, got 'some'"),
        ({"group": "all"}, "turn: group: expected one of prompt, parent, answer, got 'all'"),
        (
            {"reply": "vote"},
            "turn: reply: expected one of answer, verdict, text, problem, got 'vote'",
        ),
        ({"samples": 0}, "turn: expected samples of at least 1 .* got samples=0"),
        ({"limit": -1}, "turn: expected .* got samples=1, limit=-1"),
        ({"ask": "balanced", "group": "answer", "limit": 3}, "two verdicts on each .* limit=3"),
        ({"ask": "one_per_answer", "question": "Which?"}, "turn: question: expected {completion}"),
    ],
)
def test_bad_turns(fields, message):
    with pytest.raises(ValueError, match=message):
        Turn(**{"question": "?"} | fields)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((Turn(),), "expected Turn.. and at least one turn with a question"),
        ((Turn(question="?"), Turn(question="?")), "got questions"),
        ((Turn(), Turn()), "got questions"),
        (
            (Turn(), Turn(question="?", ask="rejected")),
            "expected ask 'rejected' behind a turn of reply 'verdict', got it behind 'answer'",
        ),
        (
            (
                Turn(),
                Turn(question="?", reply="problem"),
                Turn(question="{completion}", ask="new"),
                Turn(question="!", ask="balanced"),
            ),
            "expected ask 'balanced' about answers to the task's prompt",
        ),
        (
            (
                Turn(),
                Turn(question="?", reply="problem"),
                Turn(question="{completion}", ask="new"),
                Turn(question="{prompt}{completion}?", reply="verdict"),
            ),
            "expected no {prompt}, which is the task's, in a question about a problem",
        ),
    ],
)
def test_turns_that_do_not_fit_together(turns, message):
    class Own:
        pass

    function = Own()
    function.turns = turns
    with pytest.raises(ValueError, match=f"Own.turns: .*{message}"):
        turns_of(function)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("self_correct", {"alpha": -1}, "alpha: expected at least 0, got -1"),
        ("self_correct", {"labels": "vote"}, "labels: expected 'majority', 'ema', .*'vote'"),
        ("self_correct", {"alpha": math.nan}, "alpha: expected a finite number, got nan"),
        ("self_correct", {"samples": 0}, "turn: expected samples of at least 1"),
        ("verify", {"wrong": 2}, "expected wrong and no_answer of at most 1, .* got wrong=2"),
        ("coverl", {"redo": -1}, "redo: expected at least 0, got -1"),
        ("critique", {"revisions": 1}, "revisions: expected at least 2, got 1"),
        ("select", {"labels": "ema"}, "expected question, samples, limit for 'select', got labels"),
    ],
)
def test_bad_settings_of_episodes(kind, params, message):
    with pytest.raises(ValueError, match=f"reward.params: {message}"):
        make_reward_function(kind, params)


def test_the_episode_of_contributing():
    """The file and the row of CONTRIBUTING.md agree."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## A reward function of several turns")[1]
    source, row = [block.split("```")[0] for block in section.split("```python\n")[1:3]]
    module: dict = {"__name__": __name__}
    exec(source, module)
    own = next(
        value
        for name, value in module.items()
        if isinstance(value, type) and value.__module__ == __name__ and name != "Turn"
    )()
    assert len(turns_of(own)) == 3
    names = {name: globals()[name] for name in ("JUDGED", "PARENT", "ANSWERS", "VOTE", "ALL", "A")}
    [(later, expected)] = eval("{" + row + "}", names).values()
    episode = [make_groups(*FIRST)]
    episode += [make_groups(keys, cu_groups, parent=parent) for keys, cu_groups, parent in later]
    for reward, (values, _) in itertools.zip_longest(own(episode), expected):
        assert reward.rewards.tolist() == values
