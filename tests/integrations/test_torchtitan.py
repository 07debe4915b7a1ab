"""The example's loss for torchtitan's RL experiment beside torchtitan's own."""

from __future__ import annotations

import copy
import math
import runpy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from support.paths import ROOT

losses = pytest.importorskip(
    "torchtitan.experiments.rl.losses", reason="torchtitan is not installed: make test installs it"
)
from torchtitan.components.loss import ChunkedLossWrapper  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # torchtitan warns about its own code
EXAMPLE: dict[str, Any] = runpy.run_path(str(ROOT / "examples" / "torchtitan_loss.py"))
V, H = 50, 16
FP32 = 2 * (V + H + 32) * 2**-24
"""Sums over V, H and 4 * 8 tokens lie one behind the other, in two programs. Relative."""


class Model(nn.Module):
    """A decoder whose forward pass stops before its LM head, as under a ChunkedLossWrapper."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(H, H)
        self.lm_head = nn.Linear(H, V, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


def make_losses() -> list[ChunkedLossWrapper]:
    """torchtitan's and the example's."""
    clips = dict(ratio_clip_low=0.1, ratio_clip_high=0.28)
    inner = losses.DAPOLoss.Config(**clips)
    own = ChunkedLossWrapper.Config(loss_fn=inner, num_chunks=4).build()
    return [own, EXAMPLE["FusedDAPOLoss"].Config(**clips).build()]


def make_batch() -> dict[str, Tensor]:
    """Ratios on both sides of both bounds."""
    torch.manual_seed(1)
    batch = EXAMPLE["random_batch"](rows=4, length=8, vocab_size=V)
    batch["loss_mask"][2] = False  # a row of padding
    return batch


def run(loss_function: ChunkedLossWrapper, model: Model, batch: dict[str, Tensor]) -> list[Tensor]:
    """The loss, the gradients, and the metrics that both have."""
    loss_function.set_lm_head(model.lm_head)
    torch.manual_seed(2)
    # 40 tokens in all: this is one of several micro-batches.
    loss, metrics = loss_function(model(torch.randn(4, 8, H)), global_valid_tokens=40, **batch)
    loss.backward()
    gradients = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters()]
    names = ("loss/mean", "loss/ratio_mean", "bit_wise/logprob_diff/mean", "trainer/entropy/mean")
    return [loss.detach(), *gradients, *(metrics[name] for name in names)]


def check(actual: list[Tensor], expected: list[Tensor]) -> None:
    for value, other in zip(actual, expected, strict=True):
        atol = FP32 * other.abs().max().item()
        torch.testing.assert_close(value, other, rtol=0, atol=atol)


@pytest.mark.parametrize("has_cut_ratio", [False, True])
def test_loss_gradients_and_metrics(has_cut_ratio):
    """DAPOLoss cuts a ratio at exp(10), which has no gradient then."""
    batch = make_batch()
    if has_cut_ratio:
        batch["loss_mask"][1, 1] = True
        batch["generator_logprobs"][1, 1] = -25.0
        batch["advantages"][1, 1] = -2.0
    own, fused = make_losses()
    expected = run(own, Model(), batch)
    assert expected[1].abs().max() > 1e-3
    assert (expected[0] > math.exp(10) / 40) == has_cut_ratio
    check(run(fused, Model(), batch), expected)


def test_a_micro_batch_of_padding():
    batch = make_batch()
    batch["loss_mask"].fill_(False)
    own, fused = make_losses()
    check(run(fused, Model(), batch), run(own, Model(), batch))


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_sharded_head(one_rank):
    """FSDP2 with the head as a unit of its own, as torchtitan shards it. Two micro-batches."""
    batch = make_batch()
    _, fused = make_losses()
    model = Model()
    sharded = copy.deepcopy(model)
    fully_shard(sharded.lm_head, mesh=one_rank)
    fully_shard(sharded, mesh=one_rank)
    for _ in range(2):  # gradients add up
        expected = run(fused, model, batch)
        actual = run(fused, sharded, batch)
    check(actual, expected)


def test_the_example(capsys):
    EXAMPLE["main"]()
    first, *others = capsys.readouterr().out.splitlines()
    _, own, _, fused = first.replace(",", "").split()
    assert float(own) == pytest.approx(float(fused), abs=1e-6)
    assert len(others) == 2
    assert all(float(line.split()[-1]) < 1e-6 for line in others)
