"""linear_policy_loss and policy_loss against the fp64 reference, and what the fused form promises beside."""

import pytest
import torch

from srt_kernels import Objective, linear_policy_loss, policy_loss, reference
from srt_kernels.lm_head import gemm
from srt_kernels.testing import assert_close, packed_rollouts, relative_error
from support.ops import LENGTHS, NATS, RELATIVE, Counter, cpu_path, head_leaves

MEANS = ("ratio", "clip_fraction", "kl", "correction")
preset = Objective.preset

# name: objective, then log-probs that are left out, head settings. Each row covers a path of its own.
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
    "gspo": (
        preset("gspo"),
        dict(),
    ),  # two passes; the tiny clip drops most rollouts from the second
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
    """A batch and the keyword arguments that go with it."""
    head = {"temperature": options.get("temperature", 1.0), "softcap": options.get("softcap")}
    batch = packed_rollouts(lengths, shared=options.get("shared", False), **head)
    names = {"old_logprobs", "ref_logprobs", "sampler_logprobs"} - {options.get("leave_out")}
    return batch, head | {"row_index": batch.row_index} | {
        name: getattr(batch, name) for name in names
    }


def run(op, batch, objective, settings, dtype, **options):
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
    batch, settings = make(options)
    truth, expected = run(reference.linear_policy_loss, batch, objective, settings, torch.float64)
    for dtype, nats, relative in ((torch.float64, 1e-11, 1e-11), (torch.float32, NATS, RELATIVE)):
        out, grads = run(
            linear_policy_loss, batch, objective, settings, dtype, chunk_rows=5, all_rows=True
        )
        nats /= min(
            1.0, settings["temperature"]
        )  # which multiplies the rounding of the logits as well
        if objective.correction.startswith("sequence") and "old_logprobs" not in settings:
            relative *= 3  # the exponential of a sum over up to 9 log-probs has sqrt(9) times the error of one
        for name in ("loss", "logprobs", "entropies"):
            assert_close(
                name, getattr(out, name).detach(), getattr(truth, name).detach(), atol=nats
            )
        for name in MEANS:
            torch.testing.assert_close(
                getattr(out, name), getattr(truth, name), rtol=1e-5, atol=1e-6
            )
        for name, grad, wanted in zip(
            ("dhidden", "dweight", "dbias"), grads, expected, strict=True
        ):
            assert_close(name, grad, wanted, rtol=relative)
        # Rows without gradient left out: the same loss and gradients, and nan for what was not computed.
        fewer, fewer_grads = run(
            linear_policy_loss, batch, objective, settings, dtype, chunk_rows=5
        )
        assert fewer.rows == (~fewer.logprobs.isnan()).sum() <= out.rows == 27
        assert_close("loss", fewer.loss.detach(), truth.loss.detach(), atol=nats)
        assert_close(
            "logprobs",
            fewer.logprobs,
            truth.logprobs.where(~fewer.logprobs.isnan(), torch.nan),
            atol=nats,
        )
        for name, grad, wanted in zip(
            ("dhidden", "dweight", "dbias"), fewer_grads, expected, strict=True
        ):
            assert_close(name, grad, wanted, rtol=relative)


@pytest.mark.parametrize("case", CASES)
def test_policy_loss_equals_the_reference(case):
    objective, options = CASES[case]
    batch, settings = make(options)
    names = [name for name in settings if name.endswith("logprobs")]
    start = [
        t.double() for t in (batch.sampler_logprobs, batch.ref_logprobs.abs())
    ]  # any log-probs and entropies do
    outs, grads = [], []
    for op in (reference.policy_loss, policy_loss):
        logprobs, entropies = (t.clone().requires_grad_() for t in start)
        others = {name: settings[name] for name in names} | {"entropies": entropies}
        outs.append(op(logprobs, batch.advantages, batch.cu_seqlens, objective, **others))
        grads.append(
            torch.autograd.grad(outs[-1].loss, (logprobs, entropies), materialize_grads=True)
        )
    torch.testing.assert_close(outs[1].loss, outs[0].loss, rtol=1e-6, atol=1e-12)
    for name in MEANS:
        torch.testing.assert_close(
            getattr(outs[1], name), getattr(outs[0], name), rtol=1e-5, atol=1e-6
        )
    for actual, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "case", ["dapo, k1, bias corrected, shared rows", "gspo", "sapo, shared rows"]
)
def test_gradcheck_of_the_reference(case):
    objective, options = CASES[case]
    batch, settings = make(options, lengths=[2, 0, 1, 3])
    small = [t.double() for t in (batch.hidden[:, -5:], batch.weight[:9, -5:], batch.bias[:9])]

    def op(hidden, weight, bias):
        arguments = (batch.targets % 9, batch.advantages, batch.cu_seqlens, objective)
        return reference.linear_policy_loss(hidden, weight, *arguments, bias=bias, **settings).loss

    assert torch.autograd.gradcheck(op, [t.requires_grad_() for t in small])


def test_worked_example():
    """architecture.md: A A B | C C. The unanimous group is not computed; on policy every ratio is exactly 1."""
    batch = packed_rollouts([2, 1, 3, 2, 2])
    advantages = torch.tensor([1 / 3, 1 / 3, -2 / 3, 0, 0])
    hidden, weight, _ = head_leaves(batch)
    hidden.data[6:] = torch.nan  # whoever reads these rows fails
    out = linear_policy_loss(
        hidden, weight, batch.targets, advantages, batch.cu_seqlens, preset("srt")
    )
    out.loss.backward()
    assert (
        out.rows == 6
        and out.ratio.item() == 1.0
        and out.clip_fraction.item() == 0
        and out.kl.item() == 0
    )
    assert out.loss.item() == pytest.approx(
        (3 * -1 / 3 + 3 * 2 / 3) / 10
    )  # sum of -A over 10 tokens
    assert (
        out.logprobs[:6].isfinite().all()
        and out.logprobs[6:].isnan().all()
        and out.entropies[6:].isnan().all()
    )
    assert (
        torch.equal(hidden.grad[6:], torch.zeros_like(hidden.grad[6:]))
        and hidden.grad[:6].all(dim=1).any()
    )
    assert weight.grad.isfinite().all()


def test_only_rows_that_matter_are_computed():
    batch, _ = make({})  # rollouts 2 and 5 (of one token each) have advantage 0

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
    masked = {
        "old_logprobs": old,
        "sampler_logprobs": torch.where(fifth, old - 5, old),
    }  # c = exp(5) there
    assert rows(preset("grpo", correction="token_mask"), one_token, **masked) == 0


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_no_gradient_anywhere(name):
    """All advantages 0: the loss is 0, still part of the graph, with exact zeros."""
    batch, settings = make({})
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
        out = linear_policy_loss(*arguments, bias=bias, all_rows=all_rows, **settings)
        out.loss.backward()
        assert out.loss.item() == 0 and out.rows == (27 if all_rows else 0)
        assert not any(leaf.grad.any() for leaf in (hidden, weight, bias))


@pytest.mark.parametrize("name", ["dapo", "grpo", "dr_grpo", "gspo"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_sum_to_the_whole(name, as_tensor):
    objective = preset(name, max_length=16, entropy_coef=0.1, kl_coef=0.1)
    batch, settings = make({"shared": True})
    whole, grads = run(linear_policy_loss, batch, objective, settings, torch.float64)
    count = 27 if objective.reduction == "token" else len(LENGTHS)
    hidden, weight, bias = leaves = head_leaves(batch, torch.float64)
    total = 0.0
    for first, last in ((0, 2), (2, 4), (4, 8)):
        part = slice(batch.cu_seqlens[first].item(), batch.cu_seqlens[last].item())
        cu_seqlens = batch.cu_seqlens[first : last + 1] - batch.cu_seqlens[first]
        mine = {k: v[part] if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
        arguments = (
            hidden,
            weight,
            batch.targets[part],
            batch.advantages[first:last],
            cu_seqlens,
            objective,
        )
        normalizer = torch.tensor(count) if as_tensor else count
        loss = linear_policy_loss(*arguments, bias=bias, normalizer=normalizer, **mine).loss
        loss.backward()
        total += loss.item() * 3
    assert total == pytest.approx(3 * whole.loss.item(), rel=1e-6)
    for leaf, grad in zip(leaves, grads, strict=True):
        assert_close("gradient", 3 * leaf.grad, grad, rtol=1e-6)


@cpu_path
def test_gemms_and_memory():
    """Three GEMMs; two with one side frozen; one without gradients; four for rollouts over a chunk. Never [N, V]."""
    batch = packed_rollouts(
        [20, 20, 20], hidden_size=8
    )  # the third advantage is 0: two chunks of 20

    def gemms(objective, trained, chunk_rows=20, **logprobs):
        hidden, weight, _ = head_leaves(batch)
        hidden, weight = (
            hidden.requires_grad_("hidden" in trained),
            weight.requires_grad_("weight" in trained),
        )
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
        assert counter.largest == chunk_rows * 331
        return counter.gemms / 2

    assert gemms(preset("srt"), ["hidden", "weight"]) == 3
    assert gemms(preset("srt"), ["hidden"]) == gemms(preset("srt"), ["weight"]) == 2
    assert gemms(preset("srt"), []) == 1
    assert gemms(preset("gspo"), ["hidden", "weight"]) == 3
    assert (
        gemms(preset("gspo"), ["hidden", "weight"], chunk_rows=19) == 4 * 3 / 2
    )  # of chunks of 19, 19 and 2 rows
    away = (
        -9 * batch.advantages.repeat_interleave(20).sign()
    )  # every rollout is clipped: no second pass
    assert gemms(preset("gspo"), ["hidden", "weight"], old_logprobs=batch.old_logprobs + away) == 1


@cpu_path
def test_dw_of_a_bf16_weight_by_parts_is_the_same(monkeypatch):
    """A CPU accumulates it by parts and rounds each; here a part has 8 slices of 2 rows of the vocabulary of 331."""
    batch = packed_rollouts([40, 30])
    hidden, weight = batch.hidden.bfloat16(), batch.weight.bfloat16()
    found = []
    for slice_bytes in (gemm.SLICE_BYTES, 2 * 4 * weight.shape[1]):
        monkeypatch.setattr(gemm, "SLICE_BYTES", slice_bytes)
        leaf = weight.clone().requires_grad_()
        advantages, objective = batch.advantages + 1, Objective.preset("grpo")
        linear_policy_loss(
            hidden, leaf, batch.targets, advantages, batch.cu_seqlens, objective, chunk_rows=32
        ).loss.backward()
        found.append(leaf.grad)
    assert (
        len(gemm.weight_parts(weight)) == 21
        and found[0].dtype == torch.bfloat16
        and found[0].abs().max() > 0
    )
    assert (
        relative_error(found[1], found[0]) < 2**-9
    )  # bf16's rounding; only where fp32 sums differ at all


def test_backward_scales_and_leaves_what_it_saved():
    batch, settings = make({})
    hidden, weight, bias = head_leaves(batch)
    arguments = (hidden, weight, batch.targets, batch.advantages, batch.cu_seqlens, preset("srt"))
    loss = linear_policy_loss(*arguments, bias=bias, **settings).loss
    first = torch.autograd.grad(4 * loss, (hidden, weight, bias), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight, bias))
    assert all(torch.equal(a, 4 * b) for a, b in zip(first, second, strict=True))


@cpu_path
def test_bfloat16_hidden_states_under_autocast():
    """bf16 hidden states and an fp32 weight: dX in bf16 with no error but its own rounding, dW in fp32."""
    batch, settings = make({})
    hidden, weight = batch.hidden.bfloat16().requires_grad_(), batch.weight.clone().requires_grad_()
    truth = [t.detach().bfloat16().double().requires_grad_() for t in (hidden, weight)]
    arguments = (batch.targets, batch.advantages, batch.cu_seqlens, preset("srt"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_policy_loss(hidden, weight, *arguments, **settings).loss
    loss.backward()
    exact = reference.linear_policy_loss(*truth, *arguments, **settings).loss
    exact.backward()
    assert loss.dtype == torch.float32 and abs(loss.item() - exact.item()) < NATS
    floor = relative_error(truth[0].grad.bfloat16(), truth[0].grad)
    assert (
        hidden.grad.dtype == torch.bfloat16
        and relative_error(hidden.grad, truth[0].grad) <= floor + RELATIVE
    )
    assert (
        weight.grad.dtype == torch.float32
        and relative_error(weight.grad, truth[1].grad) <= RELATIVE
    )


@pytest.mark.parametrize("name", ["srt", "gspo"])
def test_empty_batches(name):
    weight = torch.ones(9, 4, requires_grad=True)
    for lengths in ([], [0, 0]):
        hidden, targets = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
        cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        out = linear_policy_loss(
            hidden, weight, targets, torch.ones(len(lengths)), cu_seqlens, preset(name)
        )
        out.loss.backward()
        assert (
            out.loss.item() == 0
            and out.rows == 0
            and out.ratio.item() == 0
            and not weight.grad.any()
        )


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
        (dict(advantages=torch.ones(2).int()), "advantages: expected dtype float"),
        (dict(old_logprobs=torch.ones(2)), r"old_logprobs: expected shape \[3\], got \[2\]"),
        (
            dict(objective=preset("srt", kl_coef=0.1)),
            "ref_logprobs: expected a tensor with kl_coef above 0, got None",
        ),
        (
            dict(objective=preset("srt", correction="token_mask")),
            "sampler_logprobs: expected a tensor .*token_mask",
        ),
        (dict(normalizer=0), "normalizer: expected more than 0, got 0"),
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
