"""Promises of the fused loss beside its values: bitwise invariances, exact zeros, no drift."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from srt_kernels import Objective, linear_logprob, linear_policy_loss, reference
from srt_kernels.core import backend
from srt_kernels.core.backend import use_triton
from srt_kernels.lm_head import logprob_kernel
from srt_kernels.objective.token_inputs import make_token_inputs
from srt_kernels.objective.token_terms import reduce_terms, token_terms
from srt_kernels.testing import packed_rollouts, relative_error
from support.bounds import HeadBounds, assert_within
from support.loss_bounds import Sensitivity
from support.ops import (
    LENGTHS,
    cpu_path,
    exact_rollouts,
    has_independent_rows,
    head_leaves,
)

preset = Objective.preset
ON_GPU = torch.get_default_device().type == "cuda"
# The GEMM of linear_logprob on a GPU is ours: it sums a row in one order wherever the row stands. A
# library may choose its kernel, and so the order, by the number of rows.
cublas = pytest.mark.skipif(ON_GPU, reason="cuBLAS chooses a kernel by the number of rows")
blas = pytest.mark.skipif(
    not ON_GPU and not has_independent_rows(), reason="this BLAS chooses one by the number of rows"
)
numpy = pytest.mark.skipif(
    not ON_GPU and use_triton(torch.zeros(1)), reason="numpy's BLAS, in the interpreter, does so"
)


def tokens_of(rollouts, cu_seqlens):
    return torch.cat([torch.arange(cu_seqlens[r], cu_seqlens[r + 1]) for r in rollouts])


@cublas
@blas
@pytest.mark.parametrize("name", ["dapo", pytest.param("gspo", marks=numpy)])
# A width that is no power of two, and one that is.
@pytest.mark.parametrize("vocab_size, hidden_size", [(331, 48), (517, 64)])
def test_per_token_results_do_not_depend_on_company(name, vocab_size, hidden_size):
    """Rollouts in another order, a part of them, other chunks.

    Log-probs, entropies and dhidden are bitwise the same.
    """
    lengths = [*LENGTHS, 40]
    batch = packed_rollouts(lengths, vocab_size=vocab_size, hidden_size=hidden_size)

    def run(rollouts, chunk_rows=None):
        """[N, 2 + H] results at the tokens of `rollouts`, nan elsewhere."""
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

    whole = run(list(range(9)))
    for rollouts, chunk_rows in (
        ([8, 3, 0, 5, 1, 7, 4, 2, 6], None),
        (list(range(9)), 5),
        ([4, 8], 20),
        ([5], None),
    ):
        index = tokens_of(rollouts, batch.cu_seqlens)
        assert torch.equal(run(rollouts, chunk_rows)[index], whole[index]), (rollouts, chunk_rows)


@numpy
@blas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_linear_logprob_does_not_depend_on_company(dtype):
    batch = packed_rollouts([70])
    hidden = batch.hidden.to(dtype)
    weight = batch.weight.to(dtype)
    whole = torch.stack(linear_logprob(hidden, weight, batch.targets))
    backwards = torch.arange(70).flip(0)
    three = torch.tensor([69, 3, 3])
    for index in (backwards, three, three[:1]):
        alone = linear_logprob(hidden[index], weight, batch.targets[index])
        assert torch.equal(torch.stack(alone), whole[:, index])
        shared = linear_logprob(hidden, weight, batch.targets[index], row_index=index, chunk_rows=2)
        assert torch.equal(torch.stack(shared), whole[:, index])


def test_runs_are_bitwise_equal():
    batch = packed_rollouts(LENGTHS, shared=True)
    runs = []
    for _ in range(2):
        hidden, weight, bias = leaves = head_leaves(batch)
        loss = linear_policy_loss(
            hidden,
            weight,
            batch.targets,
            batch.advantages,
            batch.cu_seqlens,
            preset("dapo"),
            bias=bias,
            row_index=batch.row_index,
            chunk_rows=5,
        ).loss
        loss.backward()
        runs.append([loss, *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=cpu_path)])
def test_unique_rows_change_no_bit(dtype):
    """Rows that are said to be unique, that are found to be, and that might repeat."""
    batch = packed_rollouts([20, 13], with_bias=False)
    targets, advantages = batch.targets[7:30], batch.advantages[:1]
    row_index = torch.randperm(33, generator=torch.Generator("cpu").manual_seed(0)).to(targets)[:23]
    objective = preset("srt")
    gradients = []
    for settings in ({"all_rows": True}, {"unique_rows": True, "all_rows": True}, {}):
        hidden, weight, _ = head_leaves(batch, dtype)
        rollouts = (advantages, torch.tensor([0, 23]), objective)
        loss = linear_policy_loss(
            hidden, weight, targets, *rollouts, row_index=row_index, chunk_rows=5, **settings
        ).loss
        loss.backward()
        gradients.append(torch.cat([hidden.grad, weight.grad]))
    assert gradients[0].any()
    assert torch.equal(gradients[1], gradients[0]) and torch.equal(gradients[2], gradients[0])


def test_dlogits_of_a_row_sum_to_zero():
    """A weight with a column of ones sums the dlogits: sum_j dz_j = 0 but for rounding."""
    batch = exact_rollouts(LENGTHS, with_bias=False)
    weight = torch.cat([batch.weight, torch.ones(331, 1)], 1)
    hidden = torch.cat([batch.hidden, torch.zeros(27, 1)], 1).requires_grad_()
    objective = preset("dapo", entropy_coef=0.1)
    linear_policy_loss(
        hidden, weight, batch.targets, batch.advantages, batch.cu_seqlens, objective
    ).loss.backward()
    head_bounds = HeadBounds(hidden, weight, batch.targets)
    sensitivity = Sensitivity(head_bounds, batch, objective)
    bound, *_ = sensitivity.bounds(head_bounds).gradients
    assert_within("sums", hidden.grad[:, -1], torch.zeros(27), bound[:, -1])
    assert hidden.grad[:, :-1].any()


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "sapo", "srt"])
def test_on_policy_the_ratio_is_exactly_one(name):
    batch = packed_rollouts(LENGTHS)
    out = linear_policy_loss(
        batch.hidden, batch.weight, batch.targets, batch.advantages, batch.cu_seqlens, preset(name)
    )
    assert out.ratio.item() == 1.0 and out.clip_fraction.item() == 0.0


def plain_linear_policy_loss(hidden, weight, *arguments):
    """The reference in fp32, on the same numbers."""
    return reference.linear_policy_loss(hidden.float(), weight.float(), *arguments)


def exact_linear_policy_loss(hidden, weight, *arguments):
    """The reference in fp64, on the same numbers."""
    return reference.linear_policy_loss(hidden.double(), weight.double(), *arguments)


@cpu_path  # 80 s in the interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drift(dtype):
    """200 steps of GRPO on a toy policy: parameters stay with those that the fp64 reference trains.

    Errors of a step add up over the steps, and plain PyTorch's do so in the same way. They are
    norms of hundreds of random roundings, so they differ little from machine to machine. 3 times
    plain PyTorch's error is allowed.
    """
    batch = packed_rollouts([4, 3, 5, 2, 6, 4], hidden_size=16, vocab_size=67, with_bias=False)
    objective = preset("grpo", entropy_coef=0.01)

    def train(op):
        """The way that hidden and weight travel."""
        start = [tensor.to(dtype).double() for tensor in (batch.hidden, batch.weight)]
        masters = [tensor.clone().requires_grad_() for tensor in start]  # fp64: steps are exact
        optimizer = torch.optim.SGD(masters, lr=1.0)
        for step in range(200):
            advantages = torch.where(torch.arange(6) % 3 == step % 3, 1.0, -0.5)
            hidden, weight = [master.to(dtype) for master in masters]
            out = op(hidden, weight, batch.targets, advantages, batch.cu_seqlens, objective)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [master.detach() - tensor for master, tensor in zip(masters, start, strict=True)]

    ways = train(linear_policy_loss)
    plain_ways = train(plain_linear_policy_loss)
    exact_ways = train(exact_linear_policy_loss)
    starts = (batch.hidden, batch.weight)
    for way, plain, exact, start in zip(ways, plain_ways, exact_ways, starts, strict=True):
        assert exact.norm() > 0.01 * start.norm()
        assert relative_error(way, exact) <= 3 * relative_error(plain, exact)


@pytest.mark.parametrize(
    "name", ["old_logprobs", "ref_logprobs", "sampler_logprobs", "logprobs", "advantages"]
)
def test_nan_is_not_lost(name):
    """A nan of an input is a nan of the loss, where nothing looks at the inputs: on a GPU.

    Triton's minimum and maximum would return the bound.
    """
    for objective in ("srt", "cispo", "sapo", "gspo"):
        tensors = {
            "logprobs": -torch.rand(6),
            "advantages": torch.tensor([1.0, -1.0]),
            "old_logprobs": -torch.rand(6),
            "ref_logprobs": -torch.rand(6),
            "sampler_logprobs": -torch.rand(6),
        }
        tensors[name][1] = torch.nan
        logprobs, advantages, *others = tensors.values()
        text = preset(objective, kl_coef=0.1, correction="token_truncate").json
        rollouts = (advantages, torch.tensor([0, 2, 6]), text, *others, None, None)
        parts, inputs = make_token_inputs(logprobs, torch.float32, *rollouts)
        loss, _ = reduce_terms(parts, inputs, token_terms(parts, logprobs, inputs), None)
        assert loss.isnan(), objective


def test_the_loss_is_differentiable_once():
    batch = packed_rollouts([4, 3])
    hidden = batch.hidden.requires_grad_()
    loss = linear_policy_loss(
        hidden, batch.weight, batch.targets, batch.advantages, batch.cu_seqlens, preset("srt")
    ).loss
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
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
    # Rows that the loss does not need.
    linear_policy_loss(*arguments[:3], torch.zeros(8), *arguments[4:])
    if not ON_GPU:
        with pytest.raises(ValueError, match="hidden row 12"):
            linear_logprob(hidden, batch.weight, batch.targets, softcap=30.0)
        with pytest.raises(ValueError, match="weight: expected finite values"):
            linear_logprob(batch.hidden, batch.weight * torch.inf, batch.targets)
        weight = batch.weight.clone()
        weight[0] = -torch.inf  # no target is 0, but dX would be nan
        with pytest.raises(ValueError, match="weight: expected finite values"):
            linear_policy_loss(batch.hidden, weight, *arguments[2:])
        bias = torch.full((len(batch.weight),), torch.nan)
        with pytest.raises(ValueError, match="bias: expected finite values.* hidden row 0"):
            linear_logprob(batch.hidden, batch.weight, batch.targets, bias=bias)


def test_where_kernels_run(monkeypatch):
    """A GPU without Triton is an error.

    fp64 stays on PyTorch. An unknown GPU gets safe block sizes.
    """
    with FakeTensorMode():
        narrow = torch.empty(1, dtype=torch.bfloat16, device="cuda")
        wide = torch.empty(1, dtype=torch.float64, device="cuda")
    assert use_triton(narrow) and not use_triton(wide)
    for capability, tile in (
        ((9, 0), logprob_kernel.HOPPER),
        ((8, 0), logprob_kernel.AMPERE),
        ((12, 0), logprob_kernel.AMPERE),
        ((7, 5), logprob_kernel.SAFE),
    ):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda *_, capability=capability: capability
        )
        assert logprob_kernel.tile_of(torch.device("cuda"), torch.bfloat16) == tile
    monkeypatch.setattr(backend, "triton", None)
    with pytest.raises(
        ValueError,
        match="device: expected triton to be installed for tensors on cuda:0, got no triton",
    ):
        use_triton(narrow)
