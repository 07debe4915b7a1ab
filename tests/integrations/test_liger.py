"""FusedLinearGRPOLoss against the installed LigerFusedLinearGRPOLoss.

Loss, metrics and gradients over the options. luspo is compared with Liger's mean over completions,
each alone and without padding. There Liger's luspo and TRL's are the same.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srt_fast.integrations import liger as module
from srt_fast.integrations.liger import FusedLinearGRPOLoss
from srt_fast.integrations.liger_inputs import ComputedTokens
from srt_kernels import linear_logprob
from srt_kernels.testing import relative_error
from support.liger import ADVANTAGES, LENGTHS, Batch, Result, make_batch

LigerLoss = pytest.importorskip("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss
pytestmark = pytest.mark.filterwarnings("ignore:Both ref_per_token_logps and ref_input")
# Of Liger's test/chunked_loss/test_grpo_loss.py, for losses, metrics and gradients.
TOLERANCES = {torch.float32: dict(atol=1e-5, rtol=5e-4), torch.bfloat16: dict(atol=5e-2, rtol=5e-1)}
TOKEN_VARIANTS = [(loss_type, "token") for loss_type in module.LOSS_TYPES]
VARIANTS = TOKEN_VARIANTS + [(loss_type, "sequence") for loss_type in module.CLIPPED]


def liger(batch: Batch, **options: Any) -> Result:
    """Liger's results. Of luspo the means over completions alone; metrics are means over tokens."""
    loss = LigerLoss(**options | dict(compiled=False))
    if options["loss_type"] != "luspo":
        return batch.call(loss)
    lengths = (batch.arguments["attention_mask"] != 0).sum(1).tolist()
    lengths_alone = [length for length in lengths if length]
    results = [batch.alone(row).call(loss) for row, length in enumerate(lengths) if length]
    count = len(lengths)
    value = sum(result[0] for result in results) / count
    metrics = []
    for index in range(len(results[0][1])):
        sums = [
            length * result[1][index] for length, result in zip(lengths_alone, results, strict=True)
        ]
        metrics.append(sum(sums) / sum(lengths))
    grads = {
        name: sum(result[2][name] for result in results) / count
        for name in batch.leaves
        if name != "_input"
    }
    dhidden = torch.zeros_like(batch.leaves["_input"])
    parts = [result[2]["_input"][0] for result in results]
    dhidden[batch.arguments["attention_mask"] != 0] = torch.cat(parts) / count
    return value, tuple(metrics), {"_input": dhidden} | grads


def assert_same(actual: Result, expected: Result, dtype: torch.dtype = torch.float32) -> None:
    """Within Liger's tolerances."""
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual[0], expected[0], **tolerance, check_dtype=False)
    assert len(actual[1]) == len(expected[1])
    for actual_metric, expected_metric in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(actual_metric, expected_metric, **tolerance)
    for name, grad in expected[2].items():
        torch.testing.assert_close(
            actual[2][name], grad, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


SETTINGS = st.fixed_dictionaries(
    dict(
        beta=st.sampled_from([0.0, 0.04, 0.3]),
        epsilon_low=st.sampled_from([0.0, 0.05, 0.2, 1.5]),
        epsilon_high=st.sampled_from([0.0, 0.02, 0.28, 1.2, 5.0]),
        temperature=st.sampled_from([1.0, 0.7, 1.3]),
        delta=st.sampled_from([None, None, 1.0, 1.02, 1.1, 1.28, 1.5, 4.0]),
        use_bias_correction_kl=st.booleans(),
        max_completion_length=st.sampled_from([9, 16]),
        chunk_size=st.sampled_from([1, 3, 64]),
        sapo_temperature_pos=st.sampled_from([1.0, 2.0]),
        sapo_temperature_neg=st.sampled_from([1.05, 3.0]),
        vespo=st.sampled_from([{}, dict(k_pos=1.5, lambda_pos=0.5, k_neg=0.5, lambda_neg=1e-5)]),
    )
)
BATCHES = st.fixed_dictionaries(
    dict(
        mask=st.sampled_from(["padded", "holes", "full"]),
        width=st.sampled_from([9, 12]),
        mask_dtype=st.sampled_from([torch.int64, torch.bool, torch.float32]),
        bias=st.booleans(),
        old=st.booleans(),
        ref=st.sampled_from(["logps", "input", None]),
        vllm=st.sampled_from([None, None, "B", "B1", "BT"]),
        num_items=st.sampled_from([None, 40, torch.tensor(55)]),
        seed=st.integers(0, 3),
    )
)


@pytest.mark.parametrize("loss_type, level", VARIANTS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(options=SETTINGS, batch=BATCHES)
def test_grid(loss_type, level, options, batch):
    vespo = {f"vespo_{name}": value for name, value in options["vespo"].items()}
    options = {name: value for name, value in options.items() if name != "vespo"} | vespo
    options |= dict(loss_type=loss_type, importance_sampling_level=level)
    options["use_ref_model"] = batch["ref"] is not None
    if level == "sequence":  # refused with a corrected KL
        options["use_bias_correction_kl"] = False
    padded_batch = make_batch(temperature=options["temperature"], **batch)
    actual = padded_batch.call(FusedLinearGRPOLoss(**options))
    assert_same(actual, liger(padded_batch, **options))


@pytest.mark.parametrize("loss_type, level", VARIANTS)
def test_bf16(loss_type, level):
    """Liger's bf16 results within its tolerances, and close to its fp32 results of bf16 numbers."""
    batch = make_batch(bias=True).to(torch.bfloat16)
    hidden = batch.leaves["_input"].detach()
    logprobs, _ = linear_logprob(
        hidden.flatten(0, 1),
        batch.leaves["lin_weight"].detach(),
        batch.arguments["selected_token_ids"].flatten(),
        bias=batch.leaves["bias"].detach(),
    )
    shape = hidden.shape[:2]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    old = logprobs.reshape(shape) + 0.02 * noise
    batch.arguments["old_per_token_logps"] = old
    batch.arguments["ref_per_token_logps"] = old.flip(0) * 0.01 + old
    # No ratio is near a bound: bf16 logits move ratios by a tenth.
    options = dict(
        loss_type=loss_type,
        importance_sampling_level=level,
        max_completion_length=9,
        epsilon_low=0.3,
        epsilon_high=0.3,
    )
    actual = batch.call(FusedLinearGRPOLoss(**options))
    assert all(grad.dtype == torch.bfloat16 for grad in actual[2].values())
    exact = liger(batch.to(torch.float32), **options)
    assert_same((*actual[:2], {}), (*exact[:2], {}))
    for name, grad in actual[2].items():
        # The gradient's own rounding to bf16, and that of fp32.
        assert relative_error(grad, exact[2][name]) < 2**-9 + 1e-4, name
    assert_same(actual, liger(batch, **options), torch.bfloat16)


@pytest.mark.parametrize("loss_type, level", VARIANTS)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_tokens_that_are_not_computed_are_not_read(loss_type, level, beta):
    """NaN and -100 outside of the mask, and without a KL in rollouts with advantage 0."""
    loss = FusedLinearGRPOLoss(
        loss_type=loss_type,
        importance_sampling_level=level,
        max_completion_length=9,
        beta=beta,
        use_ref_model=beta > 0,
    )
    batch = make_batch(mask="holes", ref="logps" if beta else None)
    poisoned = make_batch(mask="holes", ref="logps" if beta else None)
    unused = batch.arguments["attention_mask"] == 0
    if beta == 0:
        unused = unused | (batch.arguments["advantages"] == 0)[:, None]
    poisoned.leaves["_input"][unused] = float("nan")
    poisoned.arguments["selected_token_ids"][unused] = -100
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        if name in poisoned.arguments:
            poisoned.arguments[name][unused] = float("nan")
    expected = batch.call(loss)
    actual = poisoned.call(loss)
    assert torch.equal(actual[0], expected[0])
    assert actual[1] == expected[1]
    assert all(torch.equal(actual[2][name], grad) for name, grad in expected[2].items())
    assert not actual[2]["_input"][unused].any()


@pytest.mark.parametrize(
    "mask, level, vllm",
    [("padded", "sequence", None), ("padded", "sequence", "B1"), ("full", "token", "BT")],
)
def test_luspo_is_ligers_if_liger_does_not_sum_over_padding(mask, level, vllm):
    options = dict(loss_type="luspo", use_ref_model=False, importance_sampling_level=level)
    batch = make_batch(mask=mask, vllm=vllm, ref=None)
    expected = batch.call(LigerLoss(compiled=False, **options))
    assert_same(batch.call(FusedLinearGRPOLoss(**options)), expected)


def test_luspo_does_not_depend_on_the_width_of_the_batch():
    """Liger's does."""
    options = dict(loss_type="luspo", use_ref_model=False, compiled=False)
    narrow = make_batch(width=9)
    pad = torch.nn.functional.pad
    hidden = pad(narrow.leaves["_input"], (0, 0, 0, 3))
    arguments = {
        name: pad(value, (0, 3)) if isinstance(value, Tensor) and value.dim() == 2 else value
        for name, value in narrow.arguments.items()
    }
    wide = Batch(leaves=narrow.leaves | {"_input": hidden}, arguments=arguments)
    ours = [batch.call(FusedLinearGRPOLoss(**options))[0].item() for batch in (narrow, wide)]
    theirs = [batch.call(LigerLoss(**options))[0].item() for batch in (narrow, wide)]
    assert ours[0] == ours[1]
    assert abs(theirs[0] - theirs[1]) > 0.1 * abs(theirs[0])


def test_as_many_tokens_as_rollouts():
    """Advantages per token and per rollout then have the same shape."""
    batch = make_batch(vllm="BT", mask="empty")
    for row, length in enumerate([2, 1, 0, 1, 0, 1, 2, 1]):
        batch.arguments["attention_mask"][row, :length] = 1
    assert_same(batch.call(FusedLinearGRPOLoss()), liger(batch, loss_type="dapo"))


@pytest.mark.parametrize("loss_type", module.LOSS_TYPES)
@pytest.mark.parametrize("changes", [dict(mask="empty"), dict(advantages=[0.0] * 8)])
def test_nothing_to_learn(loss_type, changes):
    """Loss, metrics and gradients are 0 and part of the graph, as with Liger."""
    options = dict(loss_type=loss_type, max_completion_length=9, use_ref_model=False, beta=0.0)
    batch = make_batch(**changes)
    loss, metrics, grads = batch.call(FusedLinearGRPOLoss(**options))
    assert loss == 0
    assert not any(metrics)
    assert not any(grad.any() for grad in grads.values())
    if loss_type != "luspo":
        assert_same((loss, metrics, grads), liger(batch, **options))


def test_backward():
    """A scaled loss, a frozen head, and no gradient at all."""
    batch = make_batch(bias=True)
    loss = FusedLinearGRPOLoss()
    value, metrics, grads = batch.call(loss)
    _, _, scaled_grads = batch.call(loss, factor=-4.0)
    assert all(torch.equal(scaled_grads[name], -4 * grad) for name, grad in grads.items())

    hidden = batch.leaves["_input"].detach().requires_grad_()
    frozen = dict(lin_weight=batch.leaves["lin_weight"], bias=batch.leaves["bias"])
    frozen_value, _ = loss(hidden, **frozen, **batch.arguments)
    frozen_value.backward()
    assert torch.equal(hidden.grad, grads["_input"])

    with torch.no_grad():
        plain_value, plain_metrics = loss(hidden, **frozen, **batch.arguments)
    assert not plain_value.requires_grad
    assert plain_metrics == metrics
    torch.testing.assert_close(plain_value, value)


@pytest.mark.parametrize("num_items", [None, 50, 0])
@pytest.mark.parametrize("loss_type", ["dapo", "vespo", "bnpo"])
def test_ranks(loss_type, num_items, monkeypatch):
    """One of two ranks. The other one has 11 tokens.

    With num_items 0 the divisor is 1: the sums need small advantages.
    """
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op=None: tensor.add_(11))
    options = dict(loss_type=loss_type, chunk_size=len(LENGTHS), beta=0.004)
    small = [0.1 * advantage for advantage in ADVANTAGES]
    batch = make_batch(num_items=num_items, advantages=small)
    assert_same(batch.call(FusedLinearGRPOLoss(**options)), liger(batch, **options))


@pytest.mark.parametrize(
    "ours, theirs",
    [(FusedLinearGRPOLoss, LigerLoss), (FusedLinearGRPOLoss.forward, LigerLoss.forward)],
)
def test_signature_is_ligers(ours, theirs):
    def parameters(function: Any) -> list[tuple]:
        signature = inspect.signature(function)
        return [(part.name, part.default, part.kind) for part in signature.parameters.values()]

    assert parameters(ours) == parameters(theirs)


def test_settings_are_read_at_each_call():
    batch = make_batch()
    loss = FusedLinearGRPOLoss()
    loss.beta = 0.3
    assert batch.call(loss)[0] == batch.call(FusedLinearGRPOLoss(beta=0.3))[0]


def test_does_not_import_liger(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # an import of it raises
    spec = importlib.util.spec_from_file_location("liger_alone", module.__file__)
    module_alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module_alone)  # dataclass looks there
    spec.loader.exec_module(module_alone)


def test_computed_tokens():
    """The example in its docstring."""
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    tokens = ComputedTokens.of(mask)
    assert tokens.packed.row_index.tolist() == [0, 1, 6, 8]
    assert tokens.packed.cu_seqlens.tolist() == [0, 2, 2, 4]
    assert tokens.completion_index.tolist() == [0, 0, 2, 2]
