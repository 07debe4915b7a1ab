"""Resampling, concatenation and head-tail weights; a resumed run with each kind of reward."""

from dataclasses import replace

import pytest
import torch

from srt_fast.config import Config, override
from srt_fast.files import read_rows
from srt_fast.learner import Learner
from srt_fast.model.loading import load_policy
from srt_fast.rewards.base import keep_all
from srt_fast.rewards.inputs import RewardInputs
from srt_fast.rewards.joining import concatenate, prompts_kept
from srt_fast.rewards.pipeline import RewardPipeline
from srt_fast.rewards.weighting import cap_easy, draw_hard, head_tail
from srt_fast.run import checkpoint
from srt_fast.train import Trainer
from srt_fast.types import Reward
from support.models import sharpen
from support.rollouts import make_groups, random_rollouts


def train_rows(folder) -> list[dict]:
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]


def test_hard_prompts_count_more():
    """1 - share is 0, 1/2 and 3/4. Their mean is 5/12."""
    groups = make_groups([1, 1, 1, 1, 1, 1, 2, 3, 1, 2, 3, 4], [0, 4, 8, 12])
    reward = Reward(rewards=groups.vote.rewards, keep=keep_all(groups))
    weights = head_tail(reward, groups, 1.0).weights.view(3, 4)
    torch.testing.assert_close(weights, torch.tensor([[0.0], [6 / 5], [9 / 5]]).expand(3, 4))
    doubled = replace(reward, weights=torch.full((12,), 2.0))
    weights_of_doubled = head_tail(doubled, groups, 1.0).weights.view(3, 4)
    torch.testing.assert_close(weights_of_doubled, 2 * weights)


def test_a_cap_for_easy_prompts():
    """Two of the three, of the one and of the two that agree. Masked rollouts stay masked."""
    groups = make_groups([1, 1, 2, 1, 5, 0, 3, 3], [0, 4, 6, 8])
    keep = torch.tensor([True] * 7 + [False])
    reward = cap_easy(Reward(rewards=groups.vote.rewards, keep=keep), groups, 2)
    assert reward.keep.tolist() == [True, True, True, False, True, True, True, False]
    assert cap_easy(reward, groups, 1).keep.tolist() == [True, False, True, False] + [True] * 3 + [
        False
    ]


def test_who_is_sampled_a_second_time():
    """As many as the fraction says, never a unanimous prompt, the harder the more often."""
    torch.manual_seed(0)
    shares = torch.tensor([1.0, 0.9, 0.1, 1.0])
    draws = [draw_hard(shares, 0.25) for _ in range(1000)]
    assert {tuple(draw) for draw in draws} == {(1,), (2,)}
    hard = sum(draw == [2] for draw in draws)
    assert abs(hard - 900) < 4 * (1000 * 0.9 * 0.1) ** 0.5
    assert draw_hard(shares, 1.0) == [1, 2]
    assert draw_hard(torch.ones(4), 0.5) == draw_hard(shares, 0.2) == []
    # Without an answer, and one that does not train: a half of three is one.
    assert draw_hard(torch.tensor([0.0, 0.5, 0.9, -1.0]), 0.5) in ([1], [2])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reward": {"kind": "threshold", "params": {"tau": 0.5}, "resample": 2}},
        {"reward": {"kind": "self_correct", "params": {"question": "!"}}},
    ],
    ids=["majority", "threshold", "self_correct"],
)
def test_hard_prompts_are_sampled_a_second_time(sharp_config, tmp_path, monkeypatch, changes):
    """They are groups of their own beside the step's prompts. Only prompts that train and do not
    agree come again.
    """
    batches = []
    join_turns = RewardPipeline.join_turns

    def recording(self, batch):
        batches.append(batch)
        return join_turns(self, batch)

    monkeypatch.setattr(RewardPipeline, "join_turns", recording)
    run = {"run_dir": str(tmp_path / "run"), "curriculum.repeat_hard": 0.5, "train.steps": 3}
    Trainer(override(sharp_config, run | changes), quiet=True).train()
    count = sharp_config.train.prompts_per_step
    repeats = 0
    for batch in batches:
        first = count * batch.rounds
        kept = prompts_kept(batch).tolist()
        problems = batch.prompts.problems
        assert len(batch.groups.cu_groups) - 1 == len(problems)
        for problem in problems[first:]:
            place = problems.index(problem)
            assert place < first and kept[place]
            assert 0 < batch.groups.vote.share[place] < 1
        repeats += len(problems) - first
        assert len(problems) - first <= sum(kept[:first]) // 2
        for turn in batch.later:
            assert [batch.rollouts.layout.groups[parent] for parent in turn.parents] == turn.prompts
    assert repeats


def test_concatenate(tiny_policy):
    first = random_rollouts(tiny_policy, 3, ("1+2=", "30+4="))
    second = random_rollouts(tiny_policy, 2, ("5+5=",))
    joined = concatenate([first, second])
    assert joined.cu_groups.tolist() == [0, 3, 6, 8]
    assert joined.cu_groups.dtype == torch.int32
    second_offsets = first.cu_seqlens[-1] + second.cu_seqlens[1:]
    assert joined.cu_seqlens.tolist() == first.cu_seqlens.tolist() + second_offsets.tolist()
    assert joined.tokens.tolist() == first.tokens.tolist() + second.tokens.tolist()
    assert joined.prompts == first.prompts + second.prompts
    groups = concatenate([make_groups([1, 1, 2, 0], [0, 2, 4]), make_groups([3], [0, 1])])
    assert groups.cu_groups.tolist() == [0, 2, 4, 5]
    assert groups.vote.majority.tolist() == [1, 2, 3]
    assert groups.correct is None


def test_resampling_fills_the_batch(tiny_config, tmp_path, monkeypatch):
    """As many prompts train as a step has, and no more.

    With a random model, now and then one of two completions has an answer.
    """
    changes = {
        "reward": {"kind": "threshold", "params": {"tau": 0.5}, "resample": 40},
        "sampling.group_size": 2,
        "train.steps": 2,
        "task.answer_rule": "last_number",
        "train.prompts_per_step": 3,
    }
    prompts_trained = []
    prompts_sampled = []
    pack = Learner.pack

    def counting_pack(self, rollouts, reward):
        prompts_trained.append(reward.keep.view(-1, 2).all(1).sum().item())
        prompts_sampled.append(len(rollouts.prompts))
        return pack(self, rollouts, reward)

    monkeypatch.setattr(Learner, "pack", counting_pack)
    Trainer(override(tiny_config, changes), quiet=True).train()
    assert prompts_trained == [3, 3]
    assert all(count > 3 and count % 3 == 0 for count in prompts_sampled)
    assert [row["rounds"] * 3 for row in train_rows(tmp_path / "run")] == prompts_sampled


@pytest.fixture
def sharp_config(tiny_config, tiny_model, tmp_path) -> Config:
    changes = {
        "model.path": sharpen(tiny_model, tmp_path / "sharp"),
        "sampling.max_new_tokens": 2,
        "train.lr": 1e-3,
    }
    return override(tiny_config, changes)


def run_in_parts(config: Config, folder, ends: tuple[int, ...], **changes) -> None:
    """Train to each of these steps; after the first one, from the last checkpoint."""
    for number, steps in enumerate(ends):
        changes |= {"run_dir": str(folder), "train.steps": steps}
        resume = folder if number else None
        Trainer(override(config, changes), quiet=True, resume=resume).train()


VERIFY = {"question": "{completion}?", "solutions": 2, "samples": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"reward.kind": "frozen", "task.size": 8},
        {"reward": {"kind": "ema", "params": {"decay": 0.5, "final_decay": 0.5}}},
        {"reward": {"kind": "verify", "params": VERIFY}},
        {"reward": {"kind": "threshold", "params": {"tau": 0.75}, "resample": 2}},
        {"curriculum": {"supervised_every": 2, "supervised_lead": 1.0, "head_tail": 1.0}},
        {"curriculum": {"repeat_hard": 0.5, "easy_cap": 2}},
    ],
    ids=["frozen", "ema", "verify", "threshold", "curriculum", "hard and easy"],
)
def test_a_resumed_run_is_the_whole_run(sharp_config, tmp_path, changes):
    """Three steps and three more give the metrics and weights of six steps."""
    rows = {}
    weights = {}
    for name, ends in (("whole", (6,)), ("parts", (3, 6))):
        folder = tmp_path / name
        run_in_parts(sharp_config, folder, ends, **changes)
        rows[name] = [
            {key: row[key] for key in row if key != "time" and "second" not in key}
            for row in read_rows(folder / "metrics.jsonl")
            if row["kind"] in ("train", "monitor")
        ]
        policy = load_policy(str(folder / "model"), sharp_config.model)
        weights[name] = policy.model.state_dict()
    assert rows["whole"] == rows["parts"]
    for name, tensor in weights["whole"].items():
        assert tensor.equal(weights["parts"][name])
    assert any(row["kind"] == "monitor" and row["step"] == 6 for row in rows["whole"])
    update_steps = [
        row["step"] for row in rows["whole"] if row.get("updates") or row.get("supervised")
    ]
    assert min(update_steps) <= 3 < max(update_steps)  # on both sides of the stop


@pytest.mark.parametrize(("kind", "params"), [("ema", {"decay": 0.9}), ("frozen", {})])
def test_the_restored_state_matters(sharp_config, tmp_path, monkeypatch, kind, params):
    """Without the labels or the teacher of the checkpoint, the second half differs."""
    load_state_dict = RewardInputs.load_state_dict

    def load_without_labels(self, state):
        load_state_dict(self, state | {"labels": {}})

    pseudo_rewards = []
    for name in ("complete", "incomplete"):
        if name == "incomplete":
            monkeypatch.setattr(RewardInputs, "load_state_dict", load_without_labels)
            monkeypatch.setattr(checkpoint, "read_tensors", lambda *arguments: None)
        folder = tmp_path / name
        changes = {"reward": {"kind": kind, "params": params}, "task.size": 8}
        run_in_parts(sharp_config, folder, (3, 6), **changes)
        pseudo_rewards.append([row["pseudo_reward"] for row in train_rows(folder)])
    complete, incomplete = pseudo_rewards
    assert complete[:3] == incomplete[:3]
    assert complete[3:] != incomplete[3:]
