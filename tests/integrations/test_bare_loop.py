"""A training loop without a trainer: padded batches packed by hand, and what users wrap around.

The loss works under torch.compile, autocast, a gradient scaler and FSDP2.
"""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from srt_fast.integrations.padded import pack
from srt_kernels import Objective, linear_policy_loss
from srt_kernels.testing import assert_close
from support.paths import ROOT

# transformers and inductor warn about their own code.
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLE = ROOT / "examples" / "bare_loop.py"

# Four sequences in nine columns. Prompts end at column 4 and are padded on the left. Completions
# begin there and are padded on the right; one is empty.
PROMPTS = [2, 4, 1, 3]
COMPLETIONS = [3, 0, 5, 1]
PROMPT_WIDTH = 4
COLUMNS = torch.arange(9)
STARTS = PROMPT_WIDTH - torch.tensor(PROMPTS)[:, None]
ENDS = PROMPT_WIDTH + torch.tensor(COMPLETIONS)[:, None]
VALID = (STARTS <= COLUMNS) & (ENDS > COLUMNS)
MASK = VALID & (COLUMNS >= PROMPT_WIDTH)
IDS = torch.randint(3, 40, VALID.shape, generator=torch.Generator().manual_seed(1))
FP32 = 2 * 2 * 100 * 2**-24
"""Sums of about 100 terms lie one behind the other, forward and backward, in two programs."""
ADVANTAGES = torch.tensor([1.0, -0.5, 0.7, -1.2])
OBJECTIVE = Objective.preset("reinforce")
BATCH = (IDS, VALID, ADVANTAGES, *pack(MASK), IDS[MASK])

Result = tuple[Tensor, dict[str, Tensor]]  # a loss and its gradients by name


class Step(torch.nn.Module):
    """From token ids to a loss in one forward pass, as FSDP2 and torch.compile need it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.3,
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, ids, valid, advantages, row_index, cu_seqlens, targets, normalizer=None):
        position_ids = (valid.cumsum(1) - 1).clamp(min=0)
        output = self.model.model(ids, attention_mask=valid, position_ids=position_ids)
        return linear_policy_loss(
            output.last_hidden_state.flatten(0, 1),
            self.model.lm_head.weight,
            targets,
            advantages,
            cu_seqlens,
            OBJECTIVE,
            row_index=row_index,
            normalizer=normalizer,
        ).loss


def loss_and_grads(step: Step, function: Callable | None = None, batch: tuple = BATCH) -> Result:
    """function: what computes the loss, if not the step itself."""
    step.zero_grad(set_to_none=True)
    compute = step if function is None else function
    loss = compute(*batch)
    loss.backward()
    return loss.detach(), gradients(step)


def gradients(step: Step) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in step.named_parameters()}


def check(actual: Result, expected: Result, **tolerance: float) -> None:
    assert_close("loss", actual[0], expected[0], **tolerance)
    for name, grad in expected[1].items():
        assert_close(name, actual[1][name], grad, **tolerance)


def test_padded_batch_is_each_completion_alone():
    """Against log_softmax of the logits of each sequence without its padding, with gradients."""
    step = Step()
    actual = loss_and_grads(step)
    step.zero_grad(set_to_none=True)
    total = 0
    for ids, valid, advantage, prompt_length in zip(IDS, VALID, ADVANTAGES, PROMPTS, strict=True):
        sequence = ids[valid]
        logits = step.model(sequence[None]).logits[0, :-1]
        logprobs = logits.log_softmax(-1).gather(1, sequence[1:, None])[:, 0]
        total = total - advantage * logprobs[prompt_length - 1 :].sum()
    loss = total / sum(COMPLETIONS)
    loss.backward()
    # fp32. Attention over other widths sums in another order.
    check(actual, (loss.detach(), gradients(step)), rtol=FP32)


def test_compile():
    """Model and loss in one graph. aot_eager does everything but inductor's code generation."""
    step = Step()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    check(loss_and_grads(step, compiled), loss_and_grads(step), rtol=FP32)


def test_autocast():
    """bf16 hidden states and the fp32 head give an fp32 loss, inside the region and outside."""
    step = Step()
    hidden_states = []
    step.model.model.register_forward_hook(
        lambda module, inputs, output: hidden_states.append(output.last_hidden_state)
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss, grads = loss_and_grads(step)
    assert loss.dtype == torch.float32
    assert all(grad.dtype == torch.float32 for grad in grads.values())

    _, _, advantages, row_index, cu_seqlens, targets = BATCH
    leaf = hidden_states[0].detach().requires_grad_()
    weight = step.model.lm_head.weight
    weight.grad = None
    outside = linear_policy_loss(
        leaf.flatten(0, 1), weight, targets, advantages, cu_seqlens, OBJECTIVE, row_index=row_index
    ).loss
    outside.backward()
    assert torch.equal(outside.detach(), loss)
    assert torch.equal(weight.grad, grads["model.lm_head.weight"])

    exact = loss_and_grads(step)
    check((loss, grads), exact, rtol=14 * 2**-8)  # 14 bf16 products, one behind the other


def test_gradient_scaler():
    """A scaled loss has exactly scaled gradients.

    The first scale is more than fp32 holds: the scaler skips that step and lowers the scale.
    """
    step = Step()
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    _, expected = loss_and_grads(copy.deepcopy(step))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-40)
    start = copy.deepcopy(step.state_dict())

    def scaled_step() -> None:
        optimizer.zero_grad()
        scaler.scale(32 * step(*BATCH)).backward()
        scaler.step(optimizer)
        scaler.update()

    scaled_step()
    assert scaler.get_scale() == 2.0**87
    assert all(torch.equal(start[name], value) for name, value in step.state_dict().items())

    scaled_step()
    assert scaler.get_scale() == 2.0**87
    for name, parameter in step.named_parameters():  # scaler.step has divided by the scale
        assert torch.equal(parameter.grad, 32 * expected[name])
        updated = start[name] - 0.1 * parameter.grad
        assert_close(name, parameter.detach(), updated, rtol=2**-22)  # 4 roundings


def test_gradient_scaler_in_half_precision():
    """fp16 gradients of a mean over many tokens are below fp16's range.

    A scaler's factor brings them into the range, if they were not rounded to 0 first.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 16, generator=generator).half()
    weight = torch.randn(40, 16, generator=generator).half()
    targets = torch.randint(40, (64,), generator=generator)

    def gradient(dtype: torch.dtype, scale: float) -> Tensor:
        leaf = hidden.to(dtype, copy=True).requires_grad_()
        loss = linear_policy_loss(
            leaf,
            weight.to(dtype),
            targets,
            torch.tensor([1e-3]),
            torch.tensor([0, 64]),
            OBJECTIVE,
            normalizer=1 << 17,
        ).loss
        (scale * loss).backward()
        return leaf.grad.double() / scale

    exact = gradient(torch.float64, scale=1.0)
    assert exact.abs().max() < 2.0**-24  # the smallest number of fp16
    # dlogits and dhidden may be rounded to fp16.
    assert_close("dhidden", gradient(torch.float16, scale=2.0**16), exact, rtol=4 * 2**-11)


def shard(rank: int, folder: Path) -> None:
    """The loss of half of the batch. Its normalizer: all tokens over the number of processes."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    step = Step()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(step.model.model.layers[0], mesh=mesh)
    fully_shard(step, mesh=mesh)
    half = slice(2 * rank, 2 * rank + 2)
    mask = MASK[half]
    targets = IDS[half][mask]
    normalizer = sum(COMPLETIONS) / 2
    batch = (IDS[half], VALID[half], ADVANTAGES[half], *pack(mask), targets, normalizer)
    loss, grads = loss_and_grads(step, batch=batch)
    full_grads = {name: grad.full_tensor() for name, grad in grads.items()}
    torch.save((loss, full_grads), f"{folder}/{rank}")
    dist.destroy_process_group()


def test_fully_sharded(tmp_path):
    """FSDP2 over two processes has the loss and the gradients of one process."""
    mp.spawn(shard, (tmp_path,), nprocs=2)
    first_loss, first_grads = torch.load(tmp_path / "0")
    second_loss, second_grads = torch.load(tmp_path / "1")
    assert all(torch.equal(first_grads[name], second_grads[name]) for name in first_grads)
    mean_loss = (first_loss + second_loss) / 2
    check((mean_loss, first_grads), loss_and_grads(Step()), rtol=FP32)


def test_example(monkeypatch, capsys):
    """Trained on agreement, the model agrees with itself more often."""
    monkeypatch.setattr(sys, "argv", ["bare_loop.py", "--steps", "12"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    shares = [float(line.split()[-1]) for line in lines]
    assert len(lines) == 12
    assert shares[-1] > shares[0] + 0.3
