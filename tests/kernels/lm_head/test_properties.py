"""What the fused loss promises beside its values: invariances that hold bit by bit, exact zeros, no drift."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from srt_kernels import Objective, linear_logprob, linear_policy_loss, policy_loss, reference
from srt_kernels.core.backend import use_triton
from srt_kernels.testing import assert_close, packed_rollouts, relative_error
from support.ops import LENGTHS, NATS, RELATIVE, cpu_path, head_leaves

preset = Objective.preset
ON_GPU = torch.get_default_device().type == "cuda"
# Our own GEMM, of linear_logprob, sums a row in one order wherever it stands; other products promise nothing.
cublas = pytest.mark.skipif(
    ON_GPU, reason="cuBLAS may choose its kernel, and so a row's sum, by the number of rows"
)
numpy = pytest.mark.skipif(
    not ON_GPU and use_triton(torch.zeros(1)), reason="numpy's product, in the interpreter, may too"
)


def tokens_of(rollouts, cu_seqlens):
    return torch.cat([torch.arange(cu_seqlens[r], cu_seqlens[r + 1]) for r in rollouts])


@cublas
@pytest.mark.parametrize("name", ["dapo", pytest.param("gspo", marks=numpy)])
@pytest.mark.parametrize(
    "vocab_size, hidden_size", [(331, 48), (517, 64)]
)  # widths that are no power of two; that are
def test_per_token_results_do_not_depend_on_company(name, vocab_size, hidden_size):
    """Rollouts in another order, a part of them, other chunks: log-probs, entropies and dhidden are bitwise the same."""
    lengths = [*LENGTHS, 40]
    batch = packed_rollouts(lengths, vocab_size=vocab_size, hidden_size=hidden_size)

    def run(rollouts, chunk_rows):
        index = tokens_of(rollouts, batch.cu_seqlens)
        hidden = batch.hidden[index].requires_grad_()
        cu_seqlens = torch.tensor([0, *(lengths[r] for r in rollouts)]).cumsum(0)
        out = linear_policy_loss(
            hidden,
            batch.weight.clone().requires_grad_(),
            batch.targets[index],
            batch.advantages[rollouts],
            cu_seqlens,
            preset(name, entropy_coef=0.01),
            old_logprobs=batch.old_logprobs[index],
            bias=batch.bias,
            normalizer=10.0,
            chunk_rows=chunk_rows,
        )
        out.loss.backward()
        results = torch.full((sum(lengths), 2 + hidden_size), torch.nan)
        results[index] = torch.cat([out.logprobs[:, None], out.entropies[:, None], hidden.grad], 1)
        return results

    whole = run(list(range(9)), None)
    for rollouts, chunk_rows in (
        ([8, 3, 0, 5, 1, 7, 4, 2, 6], None),
        (list(range(9)), 5),
        ([4, 8], 20),
        ([5], None),
    ):
        index = tokens_of(rollouts, batch.cu_seqlens)
        assert torch.equal(run(rollouts, chunk_rows)[index], whole[index]), (rollouts, chunk_rows)


@numpy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_linear_logprob_does_not_depend_on_company(dtype):
    batch = packed_rollouts([70])
    hidden, weight = batch.hidden.to(dtype), batch.weight.to(dtype)
    whole = torch.stack(linear_logprob(hidden, weight, batch.targets))
    backwards, some = torch.arange(70).flip(0), torch.tensor([69, 3, 3])
    for index in (backwards, some, some[:1]):
        assert torch.equal(
            torch.stack(linear_logprob(hidden[index], weight, batch.targets[index])),
            whole[:, index],
        )
        shared = linear_logprob(hidden, weight, batch.targets[index], row_index=index, chunk_rows=2)
        assert torch.equal(torch.stack(shared), whole[:, index])


def test_runs_are_bitwise_equal():
    batch = packed_rollouts(LENGTHS, shared=True)
    runs = []
    for _ in range(2):
        leaves = head_leaves(batch)
        hidden, weight, bias = leaves
        arguments = (
            hidden,
            weight,
            batch.targets,
            batch.advantages,
            batch.cu_seqlens,
            preset("dapo"),
        )
        loss = linear_policy_loss(
            *arguments, bias=bias, row_index=batch.row_index, chunk_rows=5
        ).loss
        loss.backward()
        runs.append([loss, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_dlogits_of_a_row_sum_to_zero():
    """A weight with a column of ones sums the dlogits: sum_j dz_j = 0 but for the rounding of a sum of |dz_j|."""
    batch = packed_rollouts(LENGTHS)
    weight = torch.cat([batch.weight, torch.ones(331, 1)], 1)
    hidden = torch.cat([batch.hidden, torch.zeros(27, 1)], 1).requires_grad_()
    objective = preset("dapo", entropy_coef=0.1)
    linear_policy_loss(
        hidden, weight, batch.targets, batch.advantages, batch.cu_seqlens, objective
    ).loss.backward()
    largest = (
        hidden.grad[:, :-1].abs().amax(1)
    )  # of dX, whose weights are about 5: above the sum of |dz_j|
    assert (hidden.grad[:, -1].abs() <= 331 * 6e-8 * largest).all() and largest.any()


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "sapo", "srt"])
def test_on_policy_the_ratio_is_exactly_one(name):
    batch = packed_rollouts(LENGTHS)
    out = linear_policy_loss(
        batch.hidden, batch.weight, batch.targets, batch.advantages, batch.cu_seqlens, preset(name)
    )
    assert out.ratio.item() == 1.0 and out.clip_fraction.item() == 0.0


@cpu_path  # 80 s in the interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drift(dtype):
    """200 steps of GRPO on a toy policy: parameters stay with those that the fp64 reference trains."""
    batch = packed_rollouts([4, 3, 5, 2, 6, 4], hidden_size=16, vocab_size=67, with_bias=False)
    objective, ends = preset("grpo", entropy_coef=0.01), []
    for op, low in ((linear_policy_loss, dtype), (reference.linear_policy_loss, torch.float64)):
        masters = [
            t.to(dtype).double().requires_grad_() for t in (batch.hidden, batch.weight)
        ]  # so that steps are exact
        optimizer = torch.optim.SGD(masters, lr=1.0)
        for step in range(200):
            advantages = torch.where(torch.arange(6) % 3 == step % 3, 1.0, -0.5)
            hidden, weight = (t.to(dtype).to(low) for t in masters)  # what both compute with
            op(
                hidden, weight, batch.targets, advantages, batch.cu_seqlens, objective
            ).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([master.detach() for master in masters])
    # Of the way travelled: gradients with an error of 5e-6; in bf16 of 2^-9, and operands whose rounding flips.
    budget = RELATIVE if dtype == torch.float32 else 200**0.5 * 2**-9
    for ours, truth, start in zip(*ends, (batch.hidden, batch.weight), strict=True):
        start = start.to(dtype).double()
        assert (
            relative_error(ours - start, truth - start) < budget
            and relative_error(truth, start) > 0.01
        )


@pytest.mark.parametrize(
    "name, normalizer", [("grpo", 1e5), ("gspo", None), ("rloo", 1e-2)]
)  # tiny, middling, large
def test_fp16(name, normalizer):
    """Kernels on fp16 operands: fp32 logits and sums, gradients with no error but that of dlogits rounded to fp16, and
    none lost or infinite in its small range: backward scales before it rounds. One rollout is longer than a chunk."""
    batch = packed_rollouts([20, 13], with_bias=False)
    small = [t.half() for t in (batch.hidden, batch.weight)]
    objective = preset(name, **(dict(clip_low=1.0, clip_high=9.0) if name == "gspo" else {}))
    arguments = (batch.targets, torch.tensor([1.0, -0.5]), batch.cu_seqlens, objective)
    outs, leaves = [], []
    chunks = {"chunk_rows": 16}
    for op, dtype, options in (
        (linear_policy_loss, torch.float16, chunks),
        (reference.linear_policy_loss, torch.float64, {}),
    ):
        leaves.append([t.to(dtype, copy=True).requires_grad_() for t in small])
        outs.append(
            op(
                *leaves[-1],
                *arguments,
                old_logprobs=batch.old_logprobs,
                normalizer=normalizer,
                **options,
            )
        )
        (2.0**14 * (normalizer or 1) * outs[-1].loss).backward()  # as a gradient scaler does
    assert_close("logprobs", outs[0].logprobs, outs[1].logprobs, atol=NATS)
    for mine, exact in zip(*leaves, strict=True):
        floor = relative_error(exact.grad.half(), exact.grad)
        assert mine.grad.dtype == torch.float16
        assert (
            relative_error(mine.grad, exact.grad) <= 2 * floor + RELATIVE
        )  # dlogits and the result: two roundings


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=cpu_path)])
def test_gradients_of_linear_logprob_in_halves(dtype):
    """Sums over tokens, which a mean's scale would send to infinity, and shared rows."""
    batch = packed_rollouts([200], shared=True, with_bias=False)
    leaves = []
    for op, kind in ((linear_logprob, dtype), (reference.linear_logprob, torch.float64)):
        leaves.append(
            [t.to(dtype).to(kind, copy=True).requires_grad_() for t in (batch.hidden, batch.weight)]
        )
        logprobs, entropies = op(*leaves[-1], batch.targets, row_index=batch.row_index)
        (100 * logprobs.sum() + entropies.sum()).backward()
    for mine, exact in zip(*leaves, strict=True):
        assert (
            relative_error(mine.grad, exact.grad)
            <= 2 * relative_error(exact.grad.to(dtype), exact.grad) + RELATIVE
        )


@pytest.mark.parametrize(
    "name", ["old_logprobs", "ref_logprobs", "sampler_logprobs", "logprobs", "advantages"]
)
def test_nan_is_not_lost(name):
    """A nan among the inputs is a nan of the loss: Triton's minimum and maximum would make a bound of it."""
    for objective in ("srt", "cispo", "sapo", "gspo"):
        given = {
            "logprobs": -torch.rand(6),
            "advantages": torch.tensor([1.0, -1.0]),
            "cu_seqlens": torch.tensor([0, 2, 6]),
        }
        given |= {
            name: -torch.rand(6) for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")
        }
        given[name][1] = torch.nan
        loss = policy_loss(
            **given, objective=preset(objective, kl_coef=0.1, correction="token_truncate")
        ).loss
        assert loss.isnan(), objective


def test_the_loss_is_differentiable_once():
    batch = packed_rollouts([4, 3])
    hidden, arguments = (
        batch.hidden.requires_grad_(),
        (batch.targets, batch.advantages, batch.cu_seqlens, preset("srt")),
    )
    grad = torch.autograd.grad(
        linear_policy_loss(hidden, batch.weight, *arguments).loss, hidden, create_graph=True
    )[0]
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.square().sum().backward()


def test_nan_is_reported_with_its_row():
    batch = packed_rollouts(LENGTHS)
    hidden = batch.hidden.clone()
    hidden[[12, 13], 3] = torch.nan  # of rollout 4
    arguments = (
        hidden,
        batch.weight,
        batch.targets,
        batch.advantages,
        batch.cu_seqlens,
        preset("srt"),
    )
    with pytest.raises(
        ValueError, match="hidden: expected finite values, got nan or inf in .*hidden row 12"
    ):
        linear_policy_loss(*arguments)
    with pytest.raises(ValueError, match="hidden row 12"):
        linear_policy_loss(*arguments, row_index=torch.arange(27), all_rows=True)
    linear_policy_loss(*arguments[:3], torch.zeros(8), *arguments[4:])  # rows that nobody needs
    if not ON_GPU:
        with pytest.raises(ValueError, match="hidden row 12"):
            linear_logprob(hidden, batch.weight, batch.targets, softcap=30.0)
        with pytest.raises(ValueError, match="weight or bias: expected finite values"):
            linear_logprob(batch.hidden, batch.weight * torch.inf, batch.targets)


def test_where_kernels_run(monkeypatch):
    """A GPU without Triton is an error, fp64 stays on PyTorch, and a GPU of unknown kind gets safe block sizes."""
    from srt_kernels.core import backend as jit
    from srt_kernels.lm_head import logprob_kernel

    with FakeTensorMode():
        narrow, wide = (
            torch.empty(1, dtype=dtype, device="cuda") for dtype in (torch.bfloat16, torch.float64)
        )
    assert use_triton(narrow) and not use_triton(wide)
    for capability, tile in (
        ((9, 0), logprob_kernel.HOPPER),
        ((8, 0), logprob_kernel.AMPERE),
        ((7, 5), logprob_kernel.SAFE),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, found=capability: found)
        assert logprob_kernel.tile_of(torch.device("cuda"), torch.bfloat16) == tile
    monkeypatch.setattr(jit, "triton", None)
    with pytest.raises(
        ValueError,
        match="device: expected triton to be installed for tensors on cuda:0, got no triton",
    ):
        use_triton(narrow)
