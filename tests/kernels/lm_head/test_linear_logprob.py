"""linear_logprob against the fp64 reference: values, gradients, GEMMs and memory."""

import pytest
import torch

from srt_kernels import linear_logprob, reference
from srt_kernels.core.backend import use_triton
from srt_kernels.lm_head import logits_torch
from srt_kernels.testing import packed_rollouts
from support.bounds import (
    NAMES,
    UNIT_ROUNDOFF,
    HeadBounds,
    assert_rounded,
    assert_within,
)
from support.ops import (
    LENGTHS,
    Counter,
    cpu_path,
    exact_rollouts,
    head_leaves,
    rounds_to_bf16,
)

U = UNIT_ROUNDOFF[torch.float32]


def head_settings(batch, case):
    return {
        "temperature": case.get("temperature", 1.0),
        "softcap": case.get("softcap"),
        "row_index": batch.row_index,
    }


def output_gradients(tokens):
    """[2, tokens] random gradients by log-probs and entropies."""
    return torch.randn(2, tokens, generator=torch.Generator("cpu").manual_seed(1), device="cpu")


def run(op, batch, dtype, settings):
    """Log-probs, entropies and the gradients of their weighted sum by hidden, weight and bias."""
    hidden, weight, bias = leaves = head_leaves(batch, dtype)
    logprobs, entropies = op(hidden, weight, batch.targets, bias=bias, **settings)
    by_logprobs, by_entropies = output_gradients(len(batch.targets)).to(logprobs)
    (by_logprobs @ logprobs + by_entropies @ entropies).backward()
    return logprobs.detach(), entropies.detach(), [leaf.grad for leaf in leaves]


CASES = [
    dict(),
    dict(temperature=0.7, shared=True),  # targets that share a hidden row, rows without target
    dict(softcap=30.0, temperature=1.3),  # as Gemma 2
    dict(vocab_size=1),  # no other token: log-prob and gradient 0
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "make, chunk_rows",
    [
        (exact_rollouts, 5),  # chunks cross rollouts, and the last one is ragged
        (packed_rollouts, None),  # one chunk, of a GEMM whose sums round
    ],
    ids=["exact products", "rounded products"],
)
def test_equals_the_reference(case, make, chunk_rows, monkeypatch):
    monkeypatch.setattr(logits_torch, "SLAB_BYTES", 3 * 331 * 8)  # ragged slabs in a chunk
    batch = make(LENGTHS, **case)
    settings = head_settings(batch, case)
    logprobs, entropies, gradients = run(reference.linear_logprob, batch, torch.float64, settings)
    for dtype in (torch.float64, torch.float32):
        bounds = HeadBounds(
            batch.hidden, batch.weight, batch.targets, bias=batch.bias, dtype=dtype, **settings
        )
        out = run(linear_logprob, batch, dtype, settings | {"chunk_rows": chunk_rows})
        assert_within("logprobs", out[0], logprobs, bounds.logprob_error)
        assert_within("entropies", out[1], entropies, bounds.entropy_error)
        gradient_bounds = bounds.gradients(*output_gradients(27).to(logprobs))
        for name, *values in zip(NAMES, out[2], gradients, gradient_bounds, strict=True):
            assert_within(name, *values)


@pytest.mark.skipif(not use_triton(torch.zeros(1)), reason="tiles of the Triton kernel")
@pytest.mark.parametrize("hidden_size", [36, 35], ids=["aligned rows", "rows of any size"])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_tiles_of_large_gpus(hidden_size, softcap, monkeypatch):
    """Tiles of several parts, loaded by descriptors if rows are aligned. All edges are ragged."""
    from srt_kernels.lm_head import logprob_kernel

    wide = logprob_kernel.Tile(16, 256, 16, 4, 2, USES_DESCRIPTORS=True)
    unaligned = logprob_kernel.Tile(16, 128, 16, 4, 2)
    monkeypatch.setattr(logprob_kernel, "tile_of", lambda *_: wide)
    monkeypatch.setattr(logprob_kernel, "HOPPER_UNALIGNED", unaligned)
    batch = packed_rollouts(LENGTHS, hidden_size=hidden_size, softcap=softcap)
    head = (batch.hidden, batch.weight, batch.targets)
    settings = {"bias": batch.bias, "softcap": softcap}
    logprobs, entropies = linear_logprob(*head, **settings)
    bounds = HeadBounds(*head, **settings)
    assert_within("logprobs", logprobs, bounds.logprobs, bounds.logprob_error)
    assert_within("entropies", entropies, bounds.entropies, bounds.entropy_error)


def test_batches_are_realistic():
    """Random normal logits would hide the errors that the bounds are about."""
    for make in (exact_rollouts, packed_rollouts):
        batch = make([200])
        logits = batch.hidden @ batch.weight.T + batch.bias
        _, entropies = reference.linear_logprob(
            batch.hidden, batch.weight, batch.targets, bias=batch.bias
        )
        assert 30 < logits.abs().max() < 60
        assert 0.1 < entropies.mean() < 2


def test_the_products_of_exact_rollouts_are_exact():
    """In the types of all operands: sums in any order give the same logits."""
    batch = exact_rollouts([40])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = batch.hidden.to(dtype).float()
        products = x[:, None, :] * batch.weight[None, :, :]
        exact = x.double() @ batch.weight.double().T
        for order in (torch.arange(48), torch.randperm(48)):
            assert torch.equal(products[:, :, order].cumsum(2)[:, :, -1].double(), exact)
    assert torch.equal(batch.weight.bfloat16().float(), batch.weight)


def test_logprob_of_a_sure_token():
    """The log-prob is right although 1 - p is below fp32's resolution of p (margins over 16.6)."""
    margins = torch.tensor([10.0, 17.0, 20.7, 40.0, 80.0])
    hidden = margins[:, None].clone().requires_grad_()
    weight = torch.tensor([[1.0], [0.0], [0.0]])
    targets = torch.zeros(5, dtype=torch.int64)
    others = 2 * torch.exp(-margins.double())
    expected = -torch.log1p(others)
    slope = others / (1 + others)
    logprobs, _ = linear_logprob(hidden, weight, targets)
    logprobs.sum().backward()
    # The log-odds log 2 - margin and the argument of exp2 are rounded. exp makes relative errors of
    # these.
    relative = (4 * margins.double() + 16) * U
    assert_within("logprobs", logprobs, expected, relative * expected.abs())
    assert_within("dhidden", hidden.grad[:, 0], slope, relative * slope)
    assert 0 < -logprobs[2] < 2.1e-9
    # Of another target log-probs are below -80, not -inf. They are log-odds with a few roundings.
    unlikely, _ = linear_logprob(hidden, weight, targets + 1)
    assert_within("unlikely", unlikely, expected - margins, 8 * U * margins.double())


def test_masked_vocabulary():
    """A bias of -inf (padding of the vocabulary) removes an entry. All results are finite."""
    batch = exact_rollouts([7])
    bias = torch.where(torch.arange(331) == 330, -torch.inf, 0.0)
    hidden = batch.hidden.clone().requires_grad_()
    targets = batch.targets % 330
    logprobs, entropies = linear_logprob(hidden, batch.weight, targets, bias=bias)
    (logprobs.sum() + entropies.sum()).backward()
    shorter = HeadBounds(batch.hidden, batch.weight[:330], targets)
    assert_within("logprobs", logprobs, shorter.logprobs, shorter.logprob_error)
    assert_within("entropies", entropies, shorter.entropies, shorter.entropy_error)
    assert hidden.grad.isfinite().all()
    masked_targets = torch.full((7,), 330)
    logprobs, entropies = linear_logprob(batch.hidden, batch.weight, masked_targets, bias=bias)
    assert (logprobs <= -1e29).all() and entropies.isfinite().all()


@cpu_path
def test_bfloat16_hidden_states():
    """fp32 logits from bf16 operands: log-probs are as exact as in fp32.

    Gradients are as exact as their own type allows.
    """
    batch = exact_rollouts([27])
    hidden = batch.hidden.bfloat16().requires_grad_()
    weight = batch.weight.bfloat16().requires_grad_()
    wide_hidden = hidden.detach().clone().requires_grad_()
    wide_weight = batch.weight.clone().requires_grad_()  # as under autocast
    logprobs, entropies = linear_logprob(hidden, weight, batch.targets)
    wide_logprobs, wide_entropies = linear_logprob(wide_hidden, wide_weight, batch.targets)
    assert torch.equal(logprobs, wide_logprobs)  # a wider weight is rounded to hidden's type
    (logprobs.sum() + entropies.sum()).backward()
    (wide_logprobs.sum() + wide_entropies.sum()).backward()
    bounds = HeadBounds(hidden, weight, batch.targets)
    assert_within("logprobs", logprobs, bounds.logprobs, bounds.logprob_error)
    ones = torch.ones(27, dtype=torch.float64)
    errors = bounds.gradients(ones, ones)
    exact_gradients = bounds.rounded_gradients(torch.bfloat16, ones, ones)
    for name, leaf, (exact, rounding), error in zip(
        ("dhidden", "dweight"), (hidden, weight), exact_gradients, errors[:2], strict=True
    ):
        assert leaf.grad.dtype == torch.bfloat16
        assert_rounded(name, leaf.grad, exact, rounding, error)
    assert wide_weight.grad.dtype == torch.float32
    exact, rounding = exact_gradients[1]
    assert_rounded("dweight", wide_weight.grad, exact, rounding * rounds_to_bf16(), errors[1])


@cpu_path
def test_autocast_does_not_reach_the_logits():
    batch = packed_rollouts([20])
    plain = linear_logprob(batch.hidden, batch.weight, batch.targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_logprob(batch.hidden, batch.weight, batch.targets)[0], plain[0])


@cpu_path
def test_four_gemms_and_no_logits_tensor():
    batch = packed_rollouts([60], hidden_size=8)
    hidden, weight, _ = head_leaves(batch)
    with Counter() as counter:
        logprobs, entropies = linear_logprob(hidden, weight, batch.targets, chunk_rows=20)
        (logprobs.sum() + entropies.sum()).backward()
    assert counter.gemms == 4 * 3 and counter.largest == 20 * 331  # three chunks


def test_gradcheck_of_the_reference():
    batch = packed_rollouts([3, 2], hidden_size=4, vocab_size=7, shared=True)
    leaves = [leaf.detach().requires_grad_() for leaf in head_leaves(batch, torch.float64)]

    def op(hidden, weight, bias):
        settings = {"temperature": 0.8, "softcap": 30.0, "row_index": batch.row_index}
        return reference.linear_logprob(hidden, weight, batch.targets, bias=bias, **settings)

    assert torch.autograd.gradcheck(op, leaves)


def test_empty_batch():
    hidden = torch.zeros(0, 4, requires_grad=True)
    weight = torch.ones(9, 4, requires_grad=True)
    logprobs, entropies = linear_logprob(hidden, weight, torch.zeros(0, dtype=torch.int64))
    assert logprobs.shape == entropies.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad.shape == (0, 4) and torch.equal(weight.grad, torch.zeros(9, 4))


GOOD = dict(
    hidden=torch.ones(3, 4), weight=torch.ones(9, 4), targets=torch.zeros(3, dtype=torch.int64)
)


@pytest.mark.parametrize(
    "bad, named",
    [
        (dict(hidden=torch.ones(3, 4, 1)), r"hidden: expected shape \[any, any\], got \[3, 4, 1\]"),
        (dict(hidden=torch.ones(2, 4)), "hidden: expected 3 rows without row_index, got 2"),
        (dict(hidden=torch.ones(3, 4).int()), "hidden: expected dtype float16.*got torch.int32"),
        (dict(weight=torch.ones(9, 5)), r"weight: expected shape \[any, 4\], got \[9, 5\]"),
        (dict(weight=torch.ones(0, 4)), "weight: expected at least one row, got 0"),
        (dict(weight=torch.ones(9, 4, device="meta")), "weight: expected device cpu, got meta"),
        (dict(targets=torch.zeros(3)), "targets: expected dtype"),
        (
            dict(targets=torch.tensor([0, 9, 1])),
            r"targets: expected values in \[0, 9\), got 0 to 9",
        ),
        (
            dict(targets=torch.tensor([0, -100, 1])),
            r"targets: expected values in \[0, 9\), got -100 to 1",
        ),
        (
            dict(row_index=torch.tensor([0, 1, 3])),
            r"row_index: expected values in \[0, 3\), got 0 to 3",
        ),
        (
            dict(row_index=torch.tensor([0, 2, 2]), unique_rows=True),
            "row_index: expected no value twice, got one that repeats",
        ),
        (dict(unique_rows=1), "unique_rows: expected a bool, got int"),
        (dict(bias=torch.ones(8)), r"bias: expected shape \[9\], got \[8\]"),
        (dict(temperature=0.0), "temperature: expected a finite number above 0, got 0.0"),
        (dict(temperature="1"), "temperature: expected a number, got str"),
        (dict(group="tp"), "group: expected a torch.distributed.ProcessGroup or None, got str"),
        (dict(softcap=-1.0), "softcap: expected None or a finite number above 0, got -1.0"),
        (dict(chunk_rows=0), "chunk_rows: expected None or at least 1, got 0"),
    ],
)
def test_bad_input(bad, named):
    with pytest.raises(ValueError, match=named):
        linear_logprob(**(GOOD | bad))
