"""The majority vote as a reward function of TRL, in one process (in two: test_trl.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from srt_fast.integrations.majority_reward import majority_reward
from support.votes import BOXES, VOTES

PROMPTS = ["a"] * 4 + ["b"] * 4


def test_groups():
    metrics = {}
    reward = majority_reward()
    rewards = reward(
        prompts=PROMPTS, completions=BOXES, log_metric=metrics.__setitem__, gold=["x"] * 8
    )
    assert rewards == VOTES
    assert metrics == {
        "vote/share": pytest.approx((2 / 4 + 1 / 4) / 2),
        "vote/answered": pytest.approx(5 / 8),
    }


def test_groups_that_are_not_neighbours():
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    prompts = [PROMPTS[index] for index in order]
    boxes = [BOXES[index] for index in order]
    assert majority_reward()(prompts, boxes) == [VOTES[index] for index in order]


def test_masked_completions_do_not_vote():
    """Of the answers 1, 2, 2, 1, 2 the second and the third are masked. All have the majority 2."""
    metrics = {}
    boxes = [f"\\boxed{{{answer}}}" for answer in (1, 2, 2, 1, 2)]
    is_masked = [False, True, True, False, False]
    rewards = majority_reward()(
        ["a"] * 5, boxes, is_masked=is_masked, log_metric=metrics.__setitem__
    )
    assert rewards == [1.0, None, None, 1.0, 0.0]
    assert metrics == {"vote/share": pytest.approx(2 / 3), "vote/answered": 1.0}
    assert majority_reward()(["a"] * 2, boxes[:2], is_masked=[True] * 2) == [None, None]


@pytest.mark.parametrize(
    "completion, got",
    [
        (["hello"], "a list of {'str'}"),
        ([None], "a list of {'NoneType'}"),
        ([{"role": "assistant", "content": [{"text": {"value": "7"}}]}], "a dict in one"),
    ],
)
def test_other_completions_are_refused(completion, got):
    with pytest.raises(ValueError, match=f"completions: expected strings.* got {got}"):
        majority_reward()(["a"] * 2, [completion] * 2)


def test_conversations():
    """Tool messages, contents in parts, a last turn that is blank, and none with content."""
    prompts = [[{"role": "user", "content": name}] for name in "aaaabbbb"]
    conversations = [[{"role": "assistant", "content": text}] for text in BOXES]
    conversations[0].append({"role": "tool", "content": r"\boxed{3}"})
    parts = [{"type": "image", "text": None}, {"type": "text", "text": BOXES[1]}, " in a string"]
    conversations[1] = [{"role": "assistant", "content": parts}]
    conversations[2].append({"role": "assistant", "content": " \n"})
    conversations[4].append({"role": "assistant", "content": [{"type": "text", "text": None}]})
    conversations[3] = [{"role": "assistant", "content": None, "tool_calls": []}]
    assert majority_reward("boxed")(prompts, conversations) == VOTES


def test_refuses_single_completions():
    expected = "prompts: expected at least two completions of each, got 1 with one"
    with pytest.raises(ValueError, match=expected):
        majority_reward()(["a", "a", "b"], BOXES[:3])


def test_refuses_prompts_that_are_not_text():
    image_prompt = [{"role": "user", "content": [{"type": "image", "image": Path()}]}]
    expected = "prompts: expected strings or messages of text, got a PosixPath in one"
    with pytest.raises(ValueError, match=expected):
        majority_reward()([image_prompt] * 2, BOXES[:2])


@pytest.mark.parametrize("completion", [None, [{"role": "assistant", "content": 7}]])
def test_refuses_completions_that_are_not_text(completion):
    with pytest.raises(ValueError, match="completions: expected strings.*got"):
        majority_reward()(["a"] * 2, [completion] * 2)


def test_refuses_an_unknown_rule():
    with pytest.raises(ValueError, match="rule"):
        majority_reward("box")
