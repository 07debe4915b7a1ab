"""Which completions a supervised step takes."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from srt_fast import supervised_replay
from srt_fast.config import CurriculumConfig
from srt_fast.rewards.turns import CORRECT, WRONG
from srt_fast.supervised_replay import SupervisedReplay, pack_pairs
from srt_fast.train import Trainer
from srt_fast.types import Layout
from support.rollouts import make_groups, random_rollouts

TAKEN = [7, 1, 2, 1, 3, 4]  # shares 2/6 to 1/6
NO_LEAD = [1, 1, 2, 2, 3, 4]  # 2/6 to 2/6
NOT_RARE = [1, 1, 1, 1, 1, 2]  # 5/6
NO_ANSWER = [0] * 6


def test_supervised_steps_take_strong_but_rare_votes():
    groups = make_groups(TAKEN + NO_LEAD + NOT_RARE + NO_ANSWER, [0, 6, 12, 18, 24])
    policy = SimpleNamespace(tokenizer=lambda text: {"input_ids": [5, 6]})
    rollouts = replace(
        random_rollouts(policy, 6, ("a", "b", "c", "d")),
        cu_seqlens=torch.arange(25, dtype=torch.int32),
        tokens=torch.arange(100, 124),
        logprobs=torch.zeros(24),
        layout=Layout(lengths=[1] * 24, group_sizes=[6] * 4),
    )
    replay = SupervisedReplay(CurriculumConfig(supervised_every=3))
    replay.collect(rollouts, groups)
    assert replay.take(2) == []
    resumed = SupervisedReplay(CurriculumConfig(supervised_every=3))
    resumed.load_state_dict(replay.state_dict())
    assert replay.take(3) == [([5, 6], [101])]
    assert resumed.take(3) == [([5, 6], [101])]
    assert replay.take(6) == []


def test_supervised_steps_take_the_likeliest_completion():
    """Of every prompt, by the sum of its tokens' log-probs: the first of two that are equal."""
    policy = SimpleNamespace(tokenizer=lambda text: {"input_ids": [5, 6]})
    # Completions of 1, 2, 3 and of 4, 5, 6 tokens.
    rollouts = random_rollouts(policy, 3, ("a", "b"))
    logprobs = [[-3.0], [-1.0, -0.5], [-0.5] * 3, [-1.0] * 4, [-0.5] * 5, [-2.0] * 6]
    rollouts = replace(rollouts, logprobs=torch.tensor(sum(logprobs, [])))
    settings = CurriculumConfig(supervised_every=1, supervised_pick="likeliest")
    replay = SupervisedReplay(settings)
    replay.collect(rollouts, make_groups([0] * 6, [0, 3, 6]))
    tokens = [tokens.tolist() for tokens in rollouts.tokens.split([1, 2, 3, 4, 5, 6])]
    assert replay.take(1) == [([5, 6], tokens[1]), ([5, 6], tokens[4])]


def test_supervised_steps_take_the_completion_that_verdicts_accept():
    """Accepted: of the first prompt 0, 1/2 and none; of the second none; of the third all of 2."""
    policy = SimpleNamespace(tokenizer=lambda text: {"input_ids": [5, 6]})
    rollouts = random_rollouts(policy, 3, ("a", "b", "c"))
    verdicts = make_groups(
        [WRONG, CORRECT, WRONG, WRONG, CORRECT, CORRECT, 0],
        [0, 1, 2, 3, 4, 5, 6, 7],
        parent=[0, 1, 1, 3, 7, 7, 8],
    )
    settings = CurriculumConfig(supervised_every=1, supervised_pick="accepted")
    replay = SupervisedReplay(settings)
    replay.collect(rollouts, make_groups([0] * 9, [0, 3, 6, 9]), verdicts)
    tokens = [tokens.tolist() for tokens in rollouts.tokens.split(list(range(1, 10)))]
    assert replay.take(1) == [([5, 6], tokens[1]), ([5, 6], tokens[7])]


def test_a_step_with_many_marks_keeps_some_of_all_turns(monkeypatch):
    monkeypatch.setattr(supervised_replay, "MAX_PAIRS", 4)
    policy = SimpleNamespace(tokenizer=lambda text: {"input_ids": [ord(text)]})
    turns = [random_rollouts(policy, 4, name) for name in ("a", "b")]
    kept = set()
    for seed in range(20):
        torch.manual_seed(seed)
        replay = SupervisedReplay(CurriculumConfig(supervised_every=1))
        replay.collect_marked([(turn, torch.ones(4, dtype=torch.bool)) for turn in turns])
        pairs = replay.take(1)
        assert len(pairs) == 4
        kept |= {(prompt[0], len(completion)) for prompt, completion in pairs}
    # Each of 8 is kept with chance 1/2: one is missing in all 20 draws in 8 of a million runs.
    assert len(kept) == 8


def test_a_frozen_run_takes_no_supervised_steps():
    """Its reward function has no turns, so no verdicts."""
    parts = SimpleNamespace(collapse=SimpleNamespace(is_frozen=True))
    assert Trainer._supervised_step(SimpleNamespace(parts=parts), None) == {}


def test_pack_pairs():
    rollouts = pack_pairs([([5, 6], [101, 102]), ([7], [103])], torch.device("cpu"))
    assert rollouts.tokens.tolist() == [101, 102, 103]
    assert rollouts.prompts == [[5, 6], [7]]
