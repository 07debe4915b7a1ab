"""Evaluation of episodes: revisions, verdicts, picks, by hand."""

from types import SimpleNamespace

import pytest
import torch

from srt_fast.evaluation.episodes import evaluate_turns
from srt_fast.evaluation.scores import summarize_revisions, summarize_verdicts
from srt_fast.rewards.turns import CORRECT, WRONG, Turn
from srt_fast.sampling.base import Completion, SamplingParams, pack_completions
from srt_fast.types import Conversation, PlayedTurn, Problem
from support.rollouts import make_groups

R, W, X = 7, 8, 9  # keys; the right answer of both prompts is R, token 7


def test_revisions_worked_example():
    """First 1 1 0 0, then 1 0 1 0."""
    scores = summarize_revisions([1, 1, 0, 0], [1, 0, 1, 0])
    assert scores == {
        "acc@first": 0.5,
        "acc@final": 0.5,
        "wrong_to_right": 0.25,
        "right_to_wrong": 0.25,
    }


def test_verdicts_worked_example():
    """Accepted: two right, one wrong, of 2 right in 5. The gap is 2/3 - 2/5."""
    scores = summarize_verdicts([True, True, True, False, None], [True, True, False, False, False])
    assert scores == {
        "verdict_accuracy": 3 / 5,
        "verdict_no_answer": 1 / 5,
        "gv_gap": 2 / 3 - 2 / 5,
    }
    scores = summarize_verdicts([False, False], [True, False])
    assert scores == {"verdict_accuracy": 0.5, "verdict_no_answer": 0.0, "gv_gap": None}
    assert set(summarize_verdicts([], []).values()) == {None}


def play(keys: list[int], parents: list[int], prompts: list[int]) -> PlayedTurn:
    """A turn of one-token completions, whose token is their key."""
    completions = [Completion(torch.tensor([key]), torch.zeros(1), False) for key in keys]
    problem = Problem(id="", prompt="", gold="7")
    conversation = Conversation(problem=problem, question="", token_ids=[1], messages=())
    return PlayedTurn(
        conversations=[conversation] * len(keys),
        prompts=prompts,
        parents=parents,
        rollouts=pack_completions(completions, [[1]] * len(keys), samples=1),
        groups=make_groups(keys, list(range(len(keys) + 1)), parent=parents),
    )


def evaluate(turns: list[Turn], played: list[PlayedTurn]) -> tuple[dict, list[Turn]]:
    """Scores of a first turn R W W | R W X and what was played then. Returns the turns as asked."""
    keys = [R, W, W, R, W, X]
    first = play(keys, [], [0, 0, 0, 1, 1, 1])
    completions = [Completion(torch.tensor([key]), torch.zeros(1), False) for key in keys]
    rollouts = pack_completions(completions, [[1], [1]], samples=3)
    first = PlayedTurn(
        **vars(first) | {"rollouts": rollouts, "groups": make_groups(keys, [0, 3, 6])}
    )
    asked = []
    answers = iter(played)

    def ask(turn, before, agrees, params):
        assert params.n == 1
        asked.append(turn)
        return next(answers)

    scores = evaluate_turns(
        [Turn(), *turns],
        first,
        [key == R for key in keys],
        episodes=SimpleNamespace(ask=ask),
        task=SimpleNamespace(correct=lambda answer, problem: answer == problem.gold),
        reader=SimpleNamespace(read=lambda tokens, _: [str(token) for token in tokens.tolist()]),
        params=SamplingParams(n=3, max_tokens=1),
    )
    return scores, asked


def test_verdicts_then_revisions():
    """The vote is W and R (a tie, the first): one of two. Verdicts accept R, one W; R, W. So the
    weighted vote is a tie of R and W, the first of which wins, twice. Rejected: the third and the
    last, of which one becomes R.
    """
    verdicts = play(
        [CORRECT, CORRECT, WRONG, CORRECT, CORRECT, WRONG], list(range(6)), [0] * 3 + [1] * 3
    )
    revisions = play([R, X], [2, 5], [0, 1])
    verdict = Turn(question="?", ask="balanced", limit=4, samples=8, reply="verdict")
    scores, asked = evaluate(
        [verdict, Turn(question="!", ask="rejected", samples=2)], [verdicts, revisions]
    )
    assert scores == {
        "verdict_accuracy": pytest.approx(4 / 6),
        "verdict_no_answer": 0.0,
        "gv_gap": pytest.approx(2 / 4 - 2 / 6),
        "maj_verdict": 1.0,
        "acc@first": pytest.approx(2 / 6),
        "acc@final": pytest.approx(3 / 6),
        "wrong_to_right": pytest.approx(1 / 6),
        "right_to_wrong": 0.0,
    }
    assert [(turn.ask, turn.samples, turn.limit) for turn in asked] == [
        ("all", 1, 0),
        ("rejected", 1, 0),
    ]


def test_a_prompt_whose_answers_are_all_rejected_keeps_its_vote():
    """Prompt 0: W wins. Prompt 1: only the third is accepted, X."""
    verdicts = play([WRONG] * 5 + [CORRECT], list(range(6)), [0] * 3 + [1] * 3)
    scores, _ = evaluate([Turn(question="?", reply="verdict")], [verdicts])
    assert scores["maj_verdict"] == 0.0
    assert "acc@final" not in scores


def test_an_answer_that_was_not_asked_about_votes():
    """Prompt 0 is R W W. R is not asked, both W are rejected, one of them without a verdict."""
    verdicts = play([WRONG, X, *3 * [CORRECT]], [1, 2, 3, 4, 5], [0] * 2 + [1] * 3)
    scores, _ = evaluate([Turn(question="?", reply="verdict")], [verdicts])
    assert scores["maj_verdict"] == 1.0
    assert scores["verdict_no_answer"] == pytest.approx(1 / 5)


def test_a_pick_speaks_for_its_prompt():
    picks = play([R], [3], [1])
    turn = Turn(question="{completion}", ask="one_per_answer")
    scores, _ = evaluate([turn], [picks])
    assert scores["acc@final"] == pytest.approx(4 / 6)  # 1 0 0 | 1 1 1
    assert scores["wrong_to_right"] == pytest.approx(2 / 6)


def test_a_text_between_is_not_scored():
    """Critiques of the first two solutions; one is revised to R."""
    critiques = play([0, 0], [0, 1], [0, 0])
    revisions = play([X, R], [0, 1], [0, 0])
    scores, _ = evaluate(
        [Turn(question="?", reply="text"), Turn(question="!")], [critiques, revisions]
    )
    assert scores["acc@final"] == pytest.approx(2 / 6)
    assert scores["right_to_wrong"] == scores["wrong_to_right"] == pytest.approx(1 / 6)
