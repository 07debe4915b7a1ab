"""Where a step waits for the device: steps on a simulated GPU, with real values."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from roofline.cuda_tensor import CUDA
from srt_fast.config import Config, override
from srt_fast.learner import Learner
from srt_fast.model import attention
from srt_fast.train import Trainer
from srt_fast.transfer import fetch, send
from support.models import sharpen
from support.simulated_cuda import ROOT, SimulatedCuda, fake_cuda_is_initialised, move_model

SETTINGS = {
    "sampling.max_new_tokens": 9,  # some have windows of 8 tokens
    "train": {"prompts_per_step": 4, "token_budget": 30, "optimizer": "adamw_fused"},
    "monitor.every": 0,
    "log.sample_every": 1,
}
EVERYTHING = {
    "sampling.temperature": 0.05,  # groups agree: there is a completion for a supervised step
    "reward": {"kind": "oracle", "resample": 1},
    "curriculum": {"supervised_every": 1, "supervised_share": 1.0, "head_tail": 1.0},
    "train.minibatches": 2,
    "train.advantage": "rloo",
    "train.reward_kl_coef": 0.1,
    "train.objective_overrides": {
        "kl": "k3",
        "kl_coef": 0.1,
        "entropy_coef": 0.01,
        "correction": "token_mask",
    },
}


class Done(Exception):
    """Ends a run after its traced step."""


def traced_step(config: Config, monkeypatch) -> tuple[Counter[str], int]:
    """The host syncs of a run's first step on a simulated GPU, and its micro-batches.

    The attention is PyTorch's for CUDA, as with bfloat16. The simulation has no autocast.
    """
    mode = SimulatedCuda()
    trainer = Trainer(config, quiet=True)
    train_step = trainer.train_step
    micro_batches = []

    def step():
        policy = trainer.parts.policy
        monkeypatch.setattr(attention, "attention_path", lambda *_: attention.TORCH_VARLEN)
        with fake_cuda_is_initialised(), mode:
            move_model(policy.model)
            policy.device = CUDA
            learner = Learner(config, policy, policy, lambda: None)
            loss = learner.loss
            learner.loss = lambda batch: micro_batches.append(batch) or loss(batch)
            trainer.parts = replace(trainer.parts, learner=learner)
            train_step()
        raise Done

    trainer.train_step = step
    with pytest.raises(Done):
        trainer.train()
    return mode.host_syncs, len(micro_batches)


def documented_places() -> set[str]:
    """The first column of the table in docs/kernels.md."""
    page = (ROOT / "docs" / "kernels.md").read_text()
    section = page.split("## What a step waits for")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE))


def test_a_step_waits_where_the_docs_say(tiny_config, tiny_model, tmp_path, monkeypatch):
    """A plain step has two waits, however many micro-batches it has. One of pairs has three."""
    model = sharpen(tiny_model, tmp_path / "sharp")
    config = override(tiny_config, {"model.path": model, **SETTINGS})
    plain, micro_batches = traced_step(config, monkeypatch)
    assert micro_batches > 2
    tables = Counter({"AnswerReader.tables": 3})  # at the first call of a run
    assert plain - tables == {"select_rollouts": 1, "clip_gradients": 1}

    monkeypatch.undo()
    plain_config = config
    config = override(config, {"run_dir": str(tmp_path / "everything"), **EVERYTHING})
    every, micro_batches = traced_step(config, monkeypatch)
    assert every["linear_policy_loss"] == micro_batches > 2
    assert every["clip_gradients"] == 3  # two mini-batches and a supervised step
    assert every["select_rollouts"] == 1

    monkeypatch.undo()
    dpo = {"run_dir": str(tmp_path / "dpo"), "train.objective": "dpo", "reward.kind": "sharpen"}
    pairs, _ = traced_step(override(plain_config, dpo), monkeypatch)
    assert pairs - tables == {
        "select_rollouts": 1,
        "clip_gradients": 1,
        "Learner._pair_targets": 1,
    }
    assert {*every, *pairs} == documented_places()


WAITS = {
    "item": lambda x: x.sum().item(),
    "list": lambda x: x.tolist(),
    "truth": lambda x: bool((x > 0).all()),
    "slice": lambda x: torch.arange(9)[: x[0]],
    "places": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "set at mask": lambda x: x.masked_fill(x > 0, 1).__setitem__(x > 0, 2),
    "values": lambda x: x.unique(),
    "repeats": lambda x: torch.repeat_interleave(x),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: torch.tensor([1, 2], device=x.device),
    "places of the host": lambda x: x[[0, 1]],
}


@pytest.mark.parametrize("name", WAITS)
def test_the_simulated_gpu_sees_each_wait(name):
    with fake_cuda_is_initialised(), SimulatedCuda(outside=True) as mode:
        [x] = send([torch.tensor([1, 2, 3])], CUDA)
        assert mode.host_syncs.total() == 0
        WAITS[name](x)
        assert mode.host_syncs.total() >= 1


def test_the_simulated_gpu_refuses_tensors_of_the_host():
    with fake_cuda_is_initialised(), SimulatedCuda():
        [x] = send([torch.tensor([1, 2, 3])], CUDA)
        with pytest.raises(AssertionError, match="a tensor of the host beside the GPU's"):
            x + torch.tensor([1, 2, 3])


def test_copies_are_exact():
    """Of all types and the ends of their ranges, with one wait in all."""
    tensors = [
        torch.tensor([True, False]),
        torch.tensor([[-(2**63), 2**63 - 1]]),
        torch.tensor([-(2**31)], dtype=torch.int32),
        torch.tensor([float("-inf"), 1e-45, -0.0, 3.4e38]),
        torch.tensor(5e-324, dtype=torch.float64),
        torch.tensor([1 / 3], dtype=torch.bfloat16),
        torch.zeros(0),
    ]
    with fake_cuda_is_initialised(), SimulatedCuda(outside=True) as mode:
        copies = fetch(*send(tensors, CUDA))
    assert mode.host_syncs.total() == 1
    for copy, tensor in zip(copies, tensors, strict=True):
        assert type(copy) is torch.Tensor and copy.dtype == tensor.dtype
        assert copy.equal(tensor)
