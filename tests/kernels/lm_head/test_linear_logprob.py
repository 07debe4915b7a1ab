"""linear_logprob against the fp64 reference: values and gradients, error budgets, GEMMs and memory."""

import pytest
import torch

from srt_kernels import linear_logprob, reference
from srt_kernels.lm_head import logits_torch as torch_rows
from srt_kernels.lm_head.lm_head import CPU_CHUNK_BYTES, GPU_CHUNK_BYTES, make_head
from srt_kernels.testing import assert_close, packed_rollouts, relative_error
from support.ops import LENGTHS, NATS, RELATIVE, Counter, cpu_path, head_leaves


def run(op, batch, dtype, case, **options):
    hidden, weight, bias = leaves = head_leaves(batch, dtype)
    settings = {"temperature": case.get("temperature", 1.0), "softcap": case.get("softcap")}
    logprobs, entropies = op(
        hidden, weight, batch.targets, bias=bias, row_index=batch.row_index, **settings, **options
    )
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(2, len(batch.targets), generator=generator).to(logprobs.dtype)
    ((up[0] * logprobs).sum() + (up[1] * entropies).sum()).backward()
    return logprobs.detach(), entropies.detach(), [leaf.grad for leaf in leaves]


CASES = [
    dict(),
    dict(temperature=0.7, shared=True),  # targets that share a hidden row, rows without target
    dict(softcap=30.0, temperature=1.3),  # as Gemma 2
    dict(vocab_size=1),  # no other token: log-prob and gradient 0
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "chunk_rows", [5, None]
)  # crosses rollouts and leaves a ragged last chunk; all at once
def test_equals_the_reference(case, chunk_rows, monkeypatch):
    monkeypatch.setattr(torch_rows, "SLAB_BYTES", 3 * 331 * 8)  # ragged slabs in a chunk
    batch = packed_rollouts(LENGTHS, **case)
    truth = run(reference.linear_logprob, batch, torch.float64, case)
    for dtype, nats, relative in ((torch.float64, 1e-12, 1e-12), (torch.float32, NATS, RELATIVE)):
        logprobs, entropies, grads = run(linear_logprob, batch, dtype, case, chunk_rows=chunk_rows)
        nats /= min(
            1.0, case.get("temperature", 1.0)
        )  # which multiplies the rounding of the logits as well
        assert_close("logprobs", logprobs, truth[0], atol=nats)
        assert_close("entropies", entropies, truth[1], atol=nats)
        for name, grad, expected in zip(
            ("dhidden", "dweight", "dbias"), grads, truth[2], strict=True
        ):
            assert_close(name, grad, expected, rtol=relative, atol=None)


def test_batches_are_realistic():
    """Random normal logits would hide the errors that the budgets are about."""
    batch = packed_rollouts([200])
    logits = batch.hidden @ batch.weight.T + batch.bias
    _, entropies = reference.linear_logprob(
        batch.hidden, batch.weight, batch.targets, bias=batch.bias
    )
    assert 30 < logits.abs().max() < 60 and 0.1 < entropies.mean() < 2


def test_logprob_of_a_sure_token():
    """Margins over 16.6 nats: 1 - p is below fp32's resolution of p, and the log-prob must still be right."""
    margins = torch.tensor([10.0, 17.0, 20.7, 40.0, 80.0])
    hidden, weight = margins[:, None].clone().requires_grad_(), torch.tensor([[1.0], [0.0], [0.0]])
    targets = torch.zeros(5, dtype=torch.int64)
    others = 2 * torch.exp(-margins.double())
    expected, slope = -torch.log1p(others), others / (1 + others)
    logprobs, _ = linear_logprob(hidden, weight, targets)
    logprobs.sum().backward()
    torch.testing.assert_close(logprobs.double(), expected, rtol=5e-6, atol=0)
    torch.testing.assert_close(hidden.grad[:, 0].double(), slope, rtol=5e-6, atol=0)
    assert 0 < -logprobs[2] < 2.1e-9
    wrong, _ = linear_logprob(
        hidden, weight, targets + 1
    )  # the other side: log-probs below -80, not -inf
    torch.testing.assert_close(wrong.double(), expected - margins, rtol=1e-6, atol=0)


def test_masked_vocabulary():
    """A bias of -inf (padding of the vocabulary) takes a token out and leaves everything else finite."""
    batch = packed_rollouts([7])
    bias = torch.where(torch.arange(331) == 330, -torch.inf, 0.0)
    hidden = batch.hidden.clone().requires_grad_()
    logprobs, entropies = linear_logprob(hidden, batch.weight, batch.targets % 330, bias=bias)
    (logprobs.sum() + entropies.sum()).backward()
    shorter = reference.linear_logprob(batch.hidden, batch.weight[:330], batch.targets % 330)
    assert_close("logprobs", logprobs.detach(), shorter[0], atol=NATS)
    assert_close("entropies", entropies.detach(), shorter[1], atol=NATS)
    assert hidden.grad.isfinite().all()
    never, entropies = linear_logprob(
        batch.hidden, batch.weight, torch.full((7,), 330), bias=bias
    )  # a masked target
    assert (never <= -1e29).all() and entropies.isfinite().all()


@cpu_path
def test_bfloat16_hidden_states():
    """fp32 logits from bf16 operands: log-probs as exact as in fp32, gradients as exact as their own type allows."""
    batch = packed_rollouts([27])
    low = [t.bfloat16().detach().requires_grad_() for t in (batch.hidden, batch.weight)]
    high = [t.detach().double().requires_grad_() for t in low]
    wide = [
        low[0].detach().clone().requires_grad_(),
        batch.weight.clone().requires_grad_(),
    ]  # autocast: fp32 weight
    outs = [
        op(*head, batch.targets)
        for op, head in (
            (linear_logprob, low),
            (reference.linear_logprob, high),
            (linear_logprob, wide),
        )
    ]
    for logprobs, entropies in outs:
        (logprobs.sum() + entropies.sum()).backward()
    assert_close("logprobs", outs[0][0], outs[1][0], atol=NATS)
    assert torch.equal(
        outs[0][0], outs[2][0]
    )  # a wider weight is rounded to the hidden states' type
    for actual, truth in zip(low, high, strict=True):
        floor = relative_error(truth.grad.bfloat16(), truth.grad)
        assert (
            actual.grad.dtype == torch.bfloat16
            and relative_error(actual.grad, truth.grad) <= floor + RELATIVE
        )
    assert (
        wide[1].grad.dtype == torch.float32
        and relative_error(wide[1].grad, high[1].grad) <= RELATIVE
    )


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


def test_default_chunk_is_what_it_says():
    batch = packed_rollouts([4], vocab_size=8192)
    head = make_head(batch.hidden, batch.weight, batch.targets)
    assert head.chunk_rows == (
        CPU_CHUNK_BYTES if not batch.hidden.is_cuda else GPU_CHUNK_BYTES
    ) // (8192 * 4)


def test_gradcheck_of_the_reference():
    batch = packed_rollouts([3, 2], hidden_size=4, vocab_size=7, shared=True)
    leaves = [leaf.detach().requires_grad_() for leaf in head_leaves(batch, torch.float64)]

    def op(hidden, weight, bias):
        settings = {"temperature": 0.8, "softcap": 30.0, "row_index": batch.row_index}
        return reference.linear_logprob(hidden, weight, batch.targets, bias=bias, **settings)

    assert torch.autograd.gradcheck(op, leaves)


def test_empty_batch():
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(9, 4, requires_grad=True)
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
        (dict(hidden=torch.ones(3, 4).int()), "hidden: expected dtype float, got torch.int32"),
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
