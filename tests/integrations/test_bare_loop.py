"""A loop of one's own: padded batches, and a loss that survives compilation, autocast, a gradient scaler and sharding."""

import copy
import runpy
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from srt_fast.integrations.padded import Packed, pack
from srt_kernels import Objective, linear_policy_loss
from srt_kernels.testing import assert_close
from support.paths import ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # what transformers and inductor deprecate in themselves
EXAMPLE = ROOT / "examples" / "bare_loop.py"
PROMPTS, COMPLETIONS, WIDTH, LENGTH = (
    [2, 4, 1, 3],
    [3, 0, 5, 1],
    4,
    9,
)  # left padding, an empty completion, right padding
COLUMNS = torch.arange(LENGTH)
STARTS, ENDS = WIDTH - torch.tensor(PROMPTS)[:, None], WIDTH + torch.tensor(COMPLETIONS)[:, None]
SEEN = (STARTS <= COLUMNS) & (ENDS > COLUMNS)
MASK = SEEN & (COLUMNS >= WIDTH)
IDS = torch.randint(3, 40, SEEN.shape, generator=torch.Generator().manual_seed(1))
ADVANTAGES = torch.tensor([1.0, -0.5, 0.7, -1.2])
OBJECTIVE = Objective.preset("reinforce")
BATCH = (IDS, SEEN, ADVANTAGES, *pack(MASK), IDS[MASK])


class Step(torch.nn.Module):
    """From token ids to a loss, in one forward pass: what FSDP2 and torch.compile want to see."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                initializer_range=0.3,
            )
        )

    def forward(self, ids, seen, advantages, row_index, cu_seqlens, targets, normalizer=None):
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        hidden = self.model.model(
            ids, attention_mask=seen, position_ids=positions
        ).last_hidden_state
        return linear_policy_loss(
            hidden.flatten(0, 1),
            self.model.lm_head.weight,
            targets,
            advantages,
            cu_seqlens,
            OBJECTIVE,
            row_index=row_index,
            normalizer=normalizer,
        ).loss


def loss_and_grads(step, function=None, batch=BATCH):
    step.zero_grad(set_to_none=True)
    loss = (step if function is None else function)(*batch)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in step.named_parameters()}


def check(results, expected, **tolerance):
    assert_close("loss", results[0], expected[0], **tolerance)
    for name, grad in expected[1].items():
        assert_close(name, results[1][name], grad, **tolerance)


def test_pack():
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]])
    for dtype in (torch.bool, torch.int64, torch.uint8):
        rows, cu_seqlens = pack(mask.to(dtype))
        assert rows.tolist() == [1, 2, 8, 10] and cu_seqlens.tolist() == [0, 2, 2, 4]
        assert rows.dtype == torch.int64 and cu_seqlens.dtype == torch.int32
    assert pack(mask, aligned=True).row_index.tolist() == [2, 3, 9, 11]
    assert pack(mask.flip(1), aligned=True).row_index.tolist() == [
        0,
        1,
        8,
        10,
    ]  # the first column may be one's own there


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_pack_of_nothing(shape):
    packed = pack(torch.zeros(shape, dtype=torch.bool))
    assert (
        isinstance(packed, Packed)
        and len(packed.row_index) == 0
        and packed.cu_seqlens.tolist() == [0] * (shape[0] + 1)
    )


@pytest.mark.parametrize(
    "mask, message",
    [
        (
            torch.tensor([[0, 1], [1, 1]]),
            "mask: expected zeros in the first column, whose tokens nothing predicts, got tokens there",
        ),
        (
            torch.ones(3).bool(),
            r"mask: expected a bool or integer tensor of shape \[batch, length\], got .*bool of shape \[3\]",
        ),
        (
            torch.ones(2, 3),
            r"mask: expected a bool or integer tensor .* got torch.float32 of shape \[2, 3\]",
        ),
        ([[0, 1]], "mask: expected a bool or integer tensor .* got list"),
    ],
)
def test_pack_refuses(mask, message):
    with pytest.raises(ValueError, match=message):
        pack(mask)


def test_padded_batch_is_each_completion_alone():
    """Against log_softmax over the logits of every sequence without its padding, gradients of all parameters included."""
    step = Step()
    results = loss_and_grads(step)
    step.zero_grad(set_to_none=True)
    total = 0
    for ids, seen, advantage, prompt, completion in zip(
        IDS, SEEN, ADVANTAGES, PROMPTS, COMPLETIONS, strict=True
    ):
        alone = ids[seen][None]
        logprobs = (
            step.model(alone).logits[0, :-1].log_softmax(-1).gather(1, alone[0, 1:, None])[:, 0]
        )
        total = total - advantage * logprobs[prompt - 1 :].sum()
        assert len(logprobs[prompt - 1 :]) == completion
    loss = total / sum(COMPLETIONS)
    loss.backward()
    expected = loss.detach(), {name: parameter.grad for name, parameter in step.named_parameters()}
    check(results, expected, rtol=2e-5)  # fp32, attention over other widths


def test_compile():
    """Model and loss in one graph. aot_eager runs all of torch.compile but inductor's code generation."""
    step = Step()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    check(loss_and_grads(step, compiled), loss_and_grads(step), rtol=1e-5)


def test_autocast():
    """bf16 hidden states and the fp32 head give an fp32 loss: within the region the same as outside of it."""
    step = Step()
    hidden = []
    step.model.model.register_forward_hook(
        lambda module, inputs, output: hidden.append(output.last_hidden_state)
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss, grads = loss_and_grads(step)
    assert loss.dtype == torch.float32 and all(
        grad.dtype == torch.float32 for grad in grads.values()
    )
    _, _, advantages, row_index, cu_seqlens, targets = BATCH
    leaf = hidden[0].detach().requires_grad_()
    weight = step.model.lm_head.weight
    weight.grad = None
    outside = linear_policy_loss(
        leaf.flatten(0, 1), weight, targets, advantages, cu_seqlens, OBJECTIVE, row_index=row_index
    ).loss
    outside.backward()
    assert torch.equal(outside.detach(), loss) and torch.equal(
        weight.grad, grads["model.lm_head.weight"]
    )
    exact = loss_and_grads(step)
    check((loss, grads), exact, rtol=0.05)  # the model's own bf16: 2^-8 a matrix product


def test_gradient_scaler():
    """A scaled loss has scaled gradients, to the bit; an overflow skips the step and lowers the scale; the next one steps."""
    step = Step()
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    expected = loss_and_grads(copy.deepcopy(step))[1]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-40)
    start = copy.deepcopy(step.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(32 * step(*BATCH)).backward()  # more than fp32 holds, the first time
        overflow = not all(parameter.grad.isfinite().all() for parameter in step.parameters())
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert scaler.get_scale() == 2.0**87 and all(
                map(torch.equal, start.values(), step.state_dict().values())
            )
    assert not overflow and scaler.get_scale() == 2.0**87
    for name, parameter in step.named_parameters():  # scaler.step has divided by the scale again
        assert torch.equal(parameter.grad, 32 * expected[name])
        assert_close(name, parameter.detach(), start[name] - 0.1 * parameter.grad, rtol=1e-6)


def test_gradient_scaler_in_half_precision():
    """fp16 gradients of a mean over many tokens are below fp16's range; a scaler's factor, not lost before, brings them up."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(64, 16, generator=generator).half(),
        torch.randn(40, 16, generator=generator).half(),
    )
    targets, cu_seqlens = torch.randint(40, (64,), generator=generator), torch.tensor([0, 64])
    grads = []
    for scale, dtype in ((2.0**16, torch.float16), (1.0, torch.float64)):
        leaf = hidden.to(dtype, copy=True).requires_grad_()
        loss = linear_policy_loss(
            leaf,
            weight.to(dtype),
            targets,
            torch.tensor([1e-3]),
            cu_seqlens,
            OBJECTIVE,
            normalizer=1 << 17,
        ).loss
        (scale * loss).backward()
        grads.append(leaf.grad.double() / scale)
    assert grads[1].abs().max() < 2.0**-24  # the least that fp16 holds
    assert_close("dhidden", *grads, rtol=2e-3)


def shard(rank, path):
    """Half of the batch in each process; the loss is normalised by the tokens of all over the number of processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2
    )
    step = Step()
    fully_shard(step.model.model.layers[0], mesh=(mesh := init_device_mesh("cpu", (2,))))
    fully_shard(step, mesh=mesh)
    mine = slice(2 * rank, 2 * rank + 2)
    batch = (
        IDS[mine],
        SEEN[mine],
        ADVANTAGES[mine],
        *pack(MASK[mine]),
        IDS[mine][MASK[mine]],
        sum(COMPLETIONS) / 2,
    )
    loss, grads = loss_and_grads(step, batch=batch)
    torch.save((loss, {name: grad.full_tensor() for name, grad in grads.items()}), f"{path}/{rank}")
    dist.destroy_process_group()


def test_fully_sharded(tmp_path):
    """FSDP2 over two processes has the loss and gradients of one."""
    mp.spawn(shard, (tmp_path,), nprocs=2)
    (first, grads), (second, same) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert all(torch.equal(grads[name], same[name]) for name in grads)
    check(((first + second) / 2, grads), loss_and_grads(Step()), rtol=1e-5)


def test_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bare_loop.py", "--steps", "12"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    shares = [float(line.split()[-1]) for line in lines]
    assert len(lines) == 12 and shares[-1] > shares[0] + 0.3  # trained on agreement, it agrees
