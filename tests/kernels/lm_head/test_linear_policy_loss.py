"""linear_policy_loss and policy_loss against the fp64 reference; rows, GEMMs, memory and dtypes."""

import pytest
import torch

from srt_kernels import Objective, linear_logprob, linear_policy_loss, policy_loss, reference
from srt_kernels.lm_head import gemm
from srt_kernels.testing import assert_close, packed_rollouts
from support.bounds import (
    NAMES,
    UNIT_ROUNDOFF,
    HeadBounds,
    assert_rounded,
    assert_within,
    gamma,
)
from support.loss_bounds import MEANS, Sensitivity
from support.ops import (
    LENGTHS,
    Counter,
    cpu_path,
    exact_rollouts,
    head_leaves,
    rounds_to_bf16,
)

U = UNIT_ROUNDOFF[torch.float32]
preset = Objective.preset

# Name: objective, then the log-probs that are left out and the head's settings. Each row covers a
# path of its own.
CASES = {
    "grpo, on policy": (preset("grpo"), dict(leave_out="old_logprobs")),
    "grpo, k3 and entropy": (preset("grpo", kl_coef=0.1, entropy_coef=0.05), dict()),
    "dapo, k1, bias corrected, shared rows": (
        preset("dapo", kl="k1", kl_coef=0.3, kl_bias_correction=True),
        dict(shared=True, temperature=0.7),
    ),
    "dr_grpo, k2, softcap": (
        preset("dr_grpo", max_length=16, kl="k2", kl_coef=0.2),
        dict(softcap=30.0),
    ),
    "bnpo, token truncate": (
        preset("bnpo", correction="token_truncate", correction_cap=1.1),
        dict(),
    ),
    "srt, token mask without old": (
        preset("srt", delta=1.25, correction="token_mask", correction_cap=1.2),
        dict(leave_out="old_logprobs"),
    ),
    "srt, sequence mask": (preset("srt", correction="sequence_mask", correction_cap=1.5), dict()),
    "srt, sequence truncate without old": (
        preset("srt", correction="sequence_truncate", correction_cap=1.5),
        dict(leave_out="old_logprobs", shared=True),
    ),
    # Two passes. The tiny clip drops most rollouts from the second one.
    "gspo": (preset("gspo"), dict()),
    "gspo, KL and entropy, softcap, on policy": (
        preset("gspo", entropy_coef=0.05, kl_coef=0.1, kl_bias_correction=True),
        dict(softcap=30.0, temperature=1.3, leave_out="old_logprobs"),
    ),
    "cispo": (preset("cispo", clip_high=1.1), dict(temperature=0.7)),
    "sapo, shared rows": (preset("sapo", tau_pos=2.0, tau_neg=3.0), dict(shared=True)),
    "rloo": (preset("rloo"), dict()),
    "reinforce, importance weighted": (preset("reinforce", ratio="token"), dict()),
}


def make(options, lengths=LENGTHS):
    """A batch, its head's settings, and the log-probs that the loss gets."""
    head = {"temperature": options.get("temperature", 1.0), "softcap": options.get("softcap")}
    batch = exact_rollouts(lengths, shared=options.get("shared", False), **head)
    names = {"old_logprobs", "ref_logprobs", "sampler_logprobs"} - {options.get("leave_out")}
    logprobs = {name: getattr(batch, name) for name in sorted(names)}
    return batch, head | {"row_index": batch.row_index}, logprobs


def run(op, batch, objective, settings, dtype, **options):
    """The loss, and the gradients of 3 times the loss by hidden, weight and bias."""
    hidden, weight, bias = leaves = head_leaves(batch, dtype)
    settings = {
        name: t.to(dtype) if name.endswith("logprobs") else t for name, t in settings.items()
    }
    out = op(
        hidden,
        weight,
        batch.targets,
        batch.advantages,
        batch.cu_seqlens,
        objective,
        bias=bias,
        **settings,
        **options,
    )
    (3 * out.loss).backward()
    return out, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    objective, options = CASES[case]
    batch, head, logprobs = make(options)
    settings = head | logprobs
    truth, gradients = run(reference.linear_policy_loss, batch, objective, settings, torch.float64)
    sensitivity = None
    for dtype in (torch.float64, torch.float32):
        head_bounds = HeadBounds(
            batch.hidden, batch.weight, batch.targets, bias=batch.bias, dtype=dtype, **head
        )
        if sensitivity is None:
            sensitivity = Sensitivity(head_bounds, batch, objective, **logprobs)
        bounds = sensitivity.bounds(head_bounds, scale=3)
        chunks = {"chunk_rows": 5}
        out, grads = run(
            linear_policy_loss, batch, objective, settings, dtype, all_rows=True, **chunks
        )
        assert_within("entropies", out.entropies, truth.entropies, bounds.entropies)
        for name in MEANS:
            assert_within(name, getattr(out, name), getattr(truth, name), bounds.means[name])
        # Without the rows that have no gradient: the same loss and gradients, and nan for their
        # log-probs.
        fewer, fewer_grads = run(linear_policy_loss, batch, objective, settings, dtype, **chunks)
        is_computed = ~fewer.logprobs.isnan()
        assert fewer.rows == is_computed.sum() <= out.rows == 27
        expected = truth.logprobs.where(is_computed, torch.nan)
        assert_within("logprobs", fewer.logprobs, expected, bounds.logprobs)
        assert_within("logprobs", out.logprobs, truth.logprobs, bounds.logprobs)
        for loss, actual in ((out.loss, grads), (fewer.loss, fewer_grads)):
            assert_within("loss", loss, truth.loss, bounds.loss)
            for name, *values in zip(NAMES, actual, gradients, bounds.gradients, strict=True):
                assert_within(name, *values)


@pytest.mark.parametrize("case", CASES)
def test_policy_loss_equals_the_reference(case):
    objective, options = CASES[case]
    batch, _, inputs = make(options)
    inputs = {name: tensor.double() for name, tensor in inputs.items()}
    # Any log-probs and entropies do.
    start = (batch.sampler_logprobs.double(), batch.ref_logprobs.abs().double())
    outs = []
    grads = []
    for op in (reference.policy_loss, policy_loss):
        logprobs, entropies = leaves = [tensor.clone().requires_grad_() for tensor in start]
        out = op(
            logprobs,
            batch.advantages,
            batch.cu_seqlens,
            objective,
            entropies=entropies,
            **inputs,
        )
        outs.append(out)
        grads.append(torch.autograd.grad(out.loss, leaves, materialize_grads=True))
    # fp64: sums over 27 tokens of terms of size 1, on both sides. Means are rounded to fp32.
    bound = 2 * gamma(27 + 32, UNIT_ROUNDOFF[torch.float64])
    assert_within("loss", outs[1].loss, outs[0].loss, bound * max(1, outs[0].loss.abs().item()))
    for name in MEANS:
        mean = getattr(outs[0], name)
        assert_within(name, getattr(outs[1], name), mean, 2 * U * mean.abs())
    for actual, expected in zip(grads[1], grads[0], strict=True):
        assert_within("gradient", actual, expected, bound * expected.abs().max())


@pytest.mark.parametrize(
    "case", ["dapo, k1, bias corrected, shared rows", "gspo", "sapo, shared rows"]
)
def test_gradcheck_of_the_reference(case):
    objective, options = CASES[case]
    batch, head, logprobs = make(options, lengths=[2, 0, 1, 3])
    small = [t.double() for t in (batch.hidden[:, -5:], batch.weight[:9, -5:], batch.bias[:9])]

    def op(hidden, weight, bias):
        arguments = (batch.targets % 9, batch.advantages, batch.cu_seqlens, objective)
        out = reference.linear_policy_loss(
            hidden, weight, *arguments, bias=bias, **head, **logprobs
        )
        return out.loss

    assert torch.autograd.gradcheck(op, [t.requires_grad_() for t in small])


def test_worked_example():
    """Answers A A B | C C: the unanimous group is not computed. On policy each ratio is 1."""
    batch = packed_rollouts([2, 1, 3, 2, 2])
    advantages = torch.tensor([1 / 3, 1 / 3, -2 / 3, 0, 0])
    hidden, weight, _ = head_leaves(batch)
    hidden.data[6:] = torch.nan  # reading these rows would spoil the results
    out = linear_policy_loss(
        hidden, weight, batch.targets, advantages, batch.cu_seqlens, preset("srt")
    )
    out.loss.backward()
    assert out.rows == 6
    assert out.ratio.item() == 1.0
    assert out.clip_fraction.item() == 0
    assert out.kl.item() == 0
    # The sum of -A over 10 tokens: ten terms of at most 2/3 with a few roundings each.
    assert out.loss.item() == pytest.approx((3 * -1 / 3 + 3 * 2 / 3) / 10, abs=gamma(10))
    assert out.logprobs[:6].isfinite().all()
    assert out.logprobs[6:].isnan().all()
    assert out.entropies[6:].isnan().all()
    assert torch.equal(hidden.grad[6:], torch.zeros_like(hidden.grad[6:]))
    assert hidden.grad[:6].all(dim=1).any()
    assert weight.grad.isfinite().all()


def test_only_rows_that_matter_are_computed():
    batch, *_ = make({})  # rollouts 2 and 5 (of one token each) have advantage 0

    def rows(objective, advantages=batch.advantages, **logprobs):
        with torch.no_grad():
            arguments = (
                batch.hidden,
                batch.weight,
                batch.targets,
                advantages,
                batch.cu_seqlens,
                objective,
            )
            return linear_policy_loss(*arguments, **logprobs).rows

    assert rows(preset("grpo")) == 25
    assert rows(preset("grpo", entropy_coef=0.1)) == 27
    assert rows(preset("grpo", kl_coef=0.1), ref_logprobs=batch.ref_logprobs) == 27
    fifth = torch.arange(27) == 5
    one_token = fifth.float()  # in rollout 3, of 7 tokens
    assert rows(preset("grpo"), one_token) == 1 and rows(preset("gspo"), one_token) == 7
    old = batch.old_logprobs
    sampler_logprobs = torch.where(fifth, old - 5, old)  # the correction is exp(5) there
    masked = {"old_logprobs": old, "sampler_logprobs": sampler_logprobs}
    assert rows(preset("grpo", correction="token_mask"), one_token, **masked) == 0


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_no_gradient_anywhere(name):
    """All advantages 0: the loss is 0, still part of the graph, with exact zeros."""
    batch, head, logprobs = make({})
    hidden, weight, bias = head_leaves(batch)
    arguments = (
        hidden,
        weight,
        batch.targets,
        torch.zeros(len(LENGTHS)),
        batch.cu_seqlens,
        preset(name),
    )
    for all_rows in (False, True):
        out = linear_policy_loss(*arguments, bias=bias, all_rows=all_rows, **head, **logprobs)
        out.loss.backward()
        assert out.loss.item() == 0 and out.rows == (27 if all_rows else 0)
        assert not any(leaf.grad.any() for leaf in (hidden, weight, bias))


@pytest.mark.parametrize("name", ["dapo", "grpo", "dr_grpo", "gspo"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_sum_to_the_whole(name, as_tensor):
    objective = preset(name, max_length=16, entropy_coef=0.1, kl_coef=0.1)
    batch, head, logprobs = make({"shared": True})
    settings = head | logprobs
    whole, grads = run(linear_policy_loss, batch, objective, settings, torch.float64)
    count = 27 if objective.reduction == "token" else len(LENGTHS)
    hidden, weight, bias = leaves = head_leaves(batch, torch.float64)
    total = 0.0
    for first, last in ((0, 2), (2, 4), (4, 8)):
        part = slice(batch.cu_seqlens[first].item(), batch.cu_seqlens[last].item())
        cu_seqlens = batch.cu_seqlens[first : last + 1] - batch.cu_seqlens[first]
        part_settings = {
            name: setting[part] if isinstance(setting, torch.Tensor) else setting
            for name, setting in settings.items()
        }
        arguments = (
            hidden,
            weight,
            batch.targets[part],
            batch.advantages[first:last],
            cu_seqlens,
            objective,
        )
        normalizer = torch.tensor(count) if as_tensor else count
        out = linear_policy_loss(*arguments, bias=bias, normalizer=normalizer, **part_settings)
        out.loss.backward()
        total += out.loss.item() * 3
    # fp64, in sums of 331 terms or fewer. No term is 1000 times the sum.
    bound = 1000 * gamma(331, UNIT_ROUNDOFF[torch.float64])
    assert total == pytest.approx(3 * whole.loss.item(), rel=bound)
    for leaf, grad in zip(leaves, grads, strict=True):
        assert_close("gradient", 3 * leaf.grad, grad, rtol=bound)


@cpu_path
def test_gemms_and_memory():
    """Three GEMMs, two with one side frozen, one without gradients. Never [N, V].

    Four for rollouts that are longer than a chunk.
    """
    batch = packed_rollouts([20, 20, 20], hidden_size=8)  # the third advantage is 0: 2 chunks of 20

    def gemms(objective, trained, chunk_rows=20, largest=20, **logprobs):
        hidden, weight, _ = head_leaves(batch)
        hidden.requires_grad_("hidden" in trained)
        weight.requires_grad_("weight" in trained)
        with Counter() as counter, torch.set_grad_enabled(bool(trained)):
            arguments = (
                hidden,
                weight,
                batch.targets,
                batch.advantages,
                batch.cu_seqlens,
                objective,
            )
            loss = linear_policy_loss(*arguments, chunk_rows=chunk_rows, **logprobs).loss
            if trained:
                loss.backward()
        assert counter.largest == largest * 331
        return counter.gemms / 2

    assert gemms(preset("srt"), ["hidden", "weight"]) == 3
    assert gemms(preset("srt"), ["hidden"]) == gemms(preset("srt"), ["weight"]) == 2
    assert gemms(preset("srt"), []) == 1
    assert gemms(preset("gspo"), ["hidden", "weight"]) == 3
    # Three equal chunks, of 13 and 14 rows, whose logits have 16.
    assert gemms(preset("gspo"), ["hidden", "weight"], chunk_rows=19, largest=16) == 4 * 3 / 2
    # Every rollout is clipped: no second pass.
    far_logprobs = batch.old_logprobs - 9 * batch.advantages.repeat_interleave(20).sign()
    assert gemms(preset("gspo"), ["hidden", "weight"], old_logprobs=far_logprobs) == 1


@cpu_path
def test_dw_of_a_bf16_weight_by_parts_is_the_same(monkeypatch):
    """A CPU accumulates it by parts and rounds each. Here a part has 8 slices of 2 rows of 331."""
    batch = exact_rollouts([40, 30])
    hidden = batch.hidden.bfloat16()
    weight = batch.weight.bfloat16()
    advantages = batch.advantages + 1
    objective = preset("grpo")
    gradients = []
    for slice_bytes in (gemm.SLICE_BYTES, 2 * 4 * weight.shape[1]):
        monkeypatch.setattr(gemm, "SLICE_BYTES", slice_bytes)
        leaf = weight.clone().requires_grad_()
        linear_policy_loss(
            hidden, leaf, batch.targets, advantages, batch.cu_seqlens, objective, chunk_rows=32
        ).loss.backward()
        gradients.append(leaf.grad)
    assert len(gemm.weight_parts(weight)) == 21
    assert gradients[0].dtype == torch.bfloat16
    assert gradients[0].abs().max() > 0
    # fp32 sums that differ in their last bits may be rounded to neighbours, which are 2 u apart.
    difference = (gradients[1].double() - gradients[0].double()).abs()
    spacing = 2 * UNIT_ROUNDOFF[torch.bfloat16] * gradients[0].double().abs()
    fp32 = gamma(70) * gradients[0].abs().max()  # where the sum is 0
    assert (difference <= spacing + fp32).all()


def test_backward_scales_and_leaves_what_it_saved():
    batch, head, logprobs = make({})
    hidden, weight, bias = head_leaves(batch)
    arguments = (hidden, weight, batch.targets, batch.advantages, batch.cu_seqlens, preset("srt"))
    loss = linear_policy_loss(*arguments, bias=bias, **head, **logprobs).loss
    first = torch.autograd.grad(4 * loss, (hidden, weight, bias), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight, bias))
    assert all(torch.equal(a, 4 * b) for a, b in zip(first, second, strict=True))


@cpu_path
def test_bfloat16_hidden_states_under_autocast():
    """bf16 hidden states, fp32 weight: dX in bf16 with no error but its rounding, dW in fp32."""
    batch, head, logprobs = make({})
    hidden = batch.hidden.bfloat16().requires_grad_()
    weight = batch.weight.clone().requires_grad_()
    objective = preset("srt")
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_policy_loss(
            hidden,
            weight,
            batch.targets,
            batch.advantages,
            batch.cu_seqlens,
            objective,
            **head,
            **logprobs,
        ).loss
    loss.backward()
    head_bounds = HeadBounds(hidden, weight, batch.targets, **head)
    sensitivity = Sensitivity(head_bounds, batch, objective, **logprobs)
    bounds = sensitivity.bounds(head_bounds)
    assert loss.dtype == torch.float32
    assert_within("loss", loss, sensitivity.loss, bounds.loss)
    dhidden, dweight = head_bounds.rounded_gradients(torch.bfloat16, sensitivity.grad_logprob)
    assert hidden.grad.dtype == torch.bfloat16
    assert_rounded("dhidden", hidden.grad, *dhidden, bounds.gradients[0])
    assert weight.grad.dtype == torch.float32
    exact, rounding = dweight
    assert_rounded("dweight", weight.grad, exact, rounding * rounds_to_bf16(), bounds.gradients[1])


@pytest.mark.parametrize("normalizer", [None, 0, torch.tensor(0)])
@pytest.mark.parametrize("name", ["srt", "gspo"])
def test_empty_batches(name, normalizer):
    """The count of a global batch without tokens is 0."""
    weight = torch.ones(9, 4, requires_grad=True)
    for lengths in ([], [0, 0]):
        hidden = torch.zeros(0, 4, requires_grad=True)
        targets = torch.zeros(0, dtype=torch.int64)
        cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        rollouts = (torch.ones(len(lengths)), cu_seqlens, preset(name))
        out = linear_policy_loss(hidden, weight, targets, *rollouts, normalizer=normalizer)
        logprobs = linear_logprob(hidden, weight, targets)[0]
        unfused = policy_loss(logprobs, *rollouts, normalizer=normalizer)
        (out.loss + unfused.loss).backward()
        assert out.loss.item() == out.rows == out.ratio.item() == unfused.loss.item() == 0
        assert not weight.grad.any()


GOOD = dict(
    hidden=torch.ones(3, 4),
    weight=torch.ones(9, 4),
    targets=torch.zeros(3, dtype=torch.int64),
    advantages=torch.ones(2),
    cu_seqlens=torch.tensor([0, 1, 3], dtype=torch.int32),
    objective=preset("srt"),
)


@pytest.mark.parametrize(
    "bad, named",
    [
        (dict(objective="srt"), "objective: expected an Objective, got str"),
        (dict(cu_seqlens=torch.tensor([0, 1, 4])), "cu_seqlens: expected 3 last, got 4"),
        (
            dict(advantages=torch.ones(4)),
            r"advantages: expected shape \[2\] \(rollouts\) or \[3\] \(tokens\), got 4",
        ),
        (
            dict(advantages=torch.ones(2).int()),
            "advantages: expected dtype float16.*got torch.int32",
        ),
        (dict(old_logprobs=torch.ones(2)), r"old_logprobs: expected shape \[3\], got \[2\]"),
        (
            dict(objective=preset("srt", kl_coef=0.1)),
            "ref_logprobs: expected a tensor with kl_coef above 0, got None",
        ),
        (
            dict(objective=preset("srt", correction="token_mask")),
            "sampler_logprobs: expected a tensor .*token_mask",
        ),
        (dict(normalizer=0), "normalizer: expected a finite number above 0.*got 0"),
        (dict(normalizer=torch.ones(1)), r"normalizer: expected .* without dimensions, got \[1\]"),
    ],
)
def test_bad_input(bad, named):
    with pytest.raises(ValueError, match=named):
        linear_policy_loss(**(GOOD | bad))


def test_policy_loss_asks_for_entropies():
    with pytest.raises(
        ValueError, match="entropies: expected a tensor with entropy_coef above 0, got None"
    ):
        policy_loss(
            torch.zeros(3), torch.ones(1), torch.tensor([0, 3]), preset("srt", entropy_coef=0.1)
        )
