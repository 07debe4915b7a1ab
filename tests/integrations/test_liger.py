"""FusedLinearGRPOLoss against the installed LigerFusedLinearGRPOLoss: loss, metrics and gradients over its options.

luspo is compared with Liger's mean over completions of each alone and without padding, where Liger's and TRL's are one.
"""

import importlib.util
import inspect
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_fast.integrations import liger as module
from srt_fast.integrations.liger import FusedLinearGRPOLoss
from srt_fast.integrations.liger_inputs import ComputedTokens
from srt_kernels.lm_head.linear_logprob import linear_logprob
from srt_kernels.testing import packed_rollouts, relative_error

LigerLoss = pytest.importorskip("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss
pytestmark = pytest.mark.filterwarnings("ignore:Both ref_per_token_logps and ref_input")
H, V = 35, 211  # no powers of two
NAN = float("nan")
KINDS = (FusedLinearGRPOLoss, LigerLoss)
# Of Liger's test/chunked_loss/test_grpo_loss.py, for losses, metrics and gradients alike.
TOLERANCES = {torch.float32: dict(atol=1e-5, rtol=5e-4), torch.bfloat16: dict(atol=5e-2, rtol=5e-1)}
VARIANTS = [(loss_type, "token") for loss_type in module.LOSS_TYPES] + [
    (name, "sequence") for name in module.CLIPPED
]
LENGTHS = [3, 1, 5, 0, 7, 1, 9, 2]  # ragged, with an empty one and two of one token
ADVANTAGES = [0.5, -0.5, 0.0, 0.7, 0.0, -1.2, 1.3, -0.4]


@dataclass(frozen=True)
class Batch:
    """A padded batch with realistic logits. Tensors outside of the mask are arbitrary."""

    leaves: dict  # _input [B, T, H], lin_weight [V, H], perhaps bias [V]
    rest: dict  # what else a loss is called with

    def call(self, loss, factor: float = 1.0):
        """-> loss, metrics, gradients of factor * loss."""
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in self.leaves.items()}
        value, metrics = loss(**leaves, **self.rest)
        assert isinstance(metrics, tuple) and not any(metric.requires_grad for metric in metrics)
        grads = torch.autograd.grad(value * factor, list(leaves.values()))
        return value.detach(), metrics, dict(zip(leaves, grads, strict=True))

    def to(self, dtype) -> "Batch":
        return replace(self, leaves={name: leaf.to(dtype) for name, leaf in self.leaves.items()})

    def alone(self, b: int) -> "Batch":
        """Completion b without padding and without holes."""
        kept = self.rest["attention_mask"][b] != 0
        per_token = {
            "selected_token_ids",
            "attention_mask",
            "ref_per_token_logps",
            "old_per_token_logps",
            "ref_input",
        }

        def part(name, tensor):
            if not isinstance(tensor, torch.Tensor) or name in (
                "ref_weight",
                "ref_bias",
                "num_items_in_batch",
            ):
                return tensor
            wide = name in per_token or (name == "vllm_is_ratio" and tensor.shape[1:] == kept.shape)
            return tensor[b : b + 1, kept] if wide else tensor[b : b + 1]

        leaves = self.leaves | {"_input": self.leaves["_input"][b : b + 1, kept]}
        return replace(
            self, leaves=leaves, rest={name: part(name, value) for name, value in self.rest.items()}
        )


def make_mask(kind: str, width: int) -> torch.Tensor:
    """[B, T] bool: padded at the end, with holes, or full."""
    padded = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    holes = torch.rand(padded.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    kinds = {
        "padded": padded,
        "holes": padded & holes,
        "full": torch.ones_like(padded),
        "empty": padded & False,
    }
    return kinds[kind]


def make_batch(
    mask="padded",
    width=9,
    mask_dtype=torch.int64,
    bias=False,
    temperature=1.0,
    old=True,
    ref="logps",
    vllm=None,
    num_items=None,
    noise=0.3,
    advantages=ADVANTAGES,
    seed=0,
) -> Batch:
    rows = len(LENGTHS)
    data = packed_rollouts(
        [width] * rows,
        hidden_size=H,
        vocab_size=V,
        with_bias=bias,
        temperature=temperature,
        noise=noise,
        seed=seed,
    )
    padded = (rows, width)
    wide = torch.zeros(rows, width + 2, H)
    wide[:, 1:-1] = data.hidden.reshape(*padded, H)
    leaves = {"_input": wide[:, 1:-1], "lin_weight": data.weight} | (
        {"bias": data.bias} if bias else {}
    )  # not contiguous
    rest = dict(
        selected_token_ids=data.targets.reshape(padded),
        attention_mask=make_mask(mask, width).to(mask_dtype),
        advantages=torch.tensor(advantages),
        num_items_in_batch=num_items,
    )
    if old:
        rest |= dict(old_per_token_logps=data.old_logprobs.reshape(padded))
    if ref == "logps":
        rest |= dict(ref_per_token_logps=data.ref_logprobs.reshape(padded))
    if ref == "input":
        generator = torch.Generator().manual_seed(seed)
        moved = data.weight + 0.02 * torch.randn(V, H, generator=generator)
        rest |= dict(
            ref_input=wide[:, 1:-1], ref_weight=moved, ref_bias=data.bias if bias else None
        )
    if vllm:
        shape = {"B": (rows,), "B1": (rows, 1), "BT": padded}[vllm]
        rest |= dict(
            vllm_is_ratio=torch.rand(shape, generator=torch.Generator().manual_seed(seed))
            .mul(2)
            .sub(0.4)
            .clamp(min=0)
        )
    return Batch(leaves=leaves, rest=rest)


def liger(batch: Batch, **options):
    """Liger's loss, metrics and gradients; of luspo the means over completions alone, for metrics over tokens."""
    loss = LigerLoss(**options | dict(compiled=False))
    if options["loss_type"] != "luspo":
        return batch.call(loss)
    lengths = (batch.rest["attention_mask"] != 0).sum(1).tolist()
    shares = [(length, *batch.alone(b).call(loss)) for b, length in enumerate(lengths) if length]
    value = sum(share[1] for share in shares) / len(lengths)
    metrics = tuple(
        sum(share[0] * share[2][i] for share in shares) / sum(lengths)
        for i in range(len(shares[0][2]))
    )
    grads = {
        name: sum(share[3][name] for share in shares) / len(lengths)
        for name in batch.leaves
        if name != "_input"
    }
    dx = torch.zeros_like(batch.leaves["_input"])
    dx[batch.rest["attention_mask"] != 0] = torch.cat(
        [share[3]["_input"][0] for share in shares]
    ) / len(lengths)
    return value, metrics, {"_input": dx} | grads


def assert_same(actual, expected, dtype=torch.float32):
    """(loss, metrics, gradients) within Liger's tolerances."""
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual[0], expected[0], **tolerance, check_dtype=False)
    assert len(actual[1]) == len(expected[1])
    for one, other in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, **tolerance)
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
    options = options | {f"vespo_{name}": value for name, value in options["vespo"].items()}
    del options["vespo"]
    if level == "sequence":  # its corrected KL is refused
        options |= dict(use_bias_correction_kl=False)
    options |= dict(
        loss_type=loss_type, importance_sampling_level=level, use_ref_model=batch["ref"] is not None
    )
    made = make_batch(temperature=options["temperature"], **batch)
    assert_same(made.call(FusedLinearGRPOLoss(**options)), liger(made, **options))


@pytest.mark.parametrize("loss_type, level", VARIANTS)
def test_bf16(loss_type, level):
    """Liger's results in bf16 to its tolerances, and those that it has in fp32 from the same numbers to the last place."""
    batch = make_batch(bias=True).to(torch.bfloat16)
    hidden, weight, bias = (leaf.detach() for leaf in batch.leaves.values())
    exact, _ = linear_logprob(
        hidden.flatten(0, 1), weight, batch.rest["selected_token_ids"].flatten(), bias=bias
    )
    old = exact.reshape(hidden.shape[:2]) + 0.02 * torch.randn(
        hidden.shape[:2], generator=torch.Generator().manual_seed(5)
    )
    batch.rest.update(old_per_token_logps=old, ref_per_token_logps=old.flip(0) * 0.01 + old)
    options = dict(loss_type=loss_type, importance_sampling_level=level, max_completion_length=9)
    options |= dict(
        epsilon_low=0.3, epsilon_high=0.3
    )  # no ratio is near: bf16 logits move them by a tenth
    loss, metrics, grads = mine = batch.call(FusedLinearGRPOLoss(**options))
    assert all(grad.dtype == torch.bfloat16 for grad in grads.values())
    expected = liger(batch.to(torch.float32), **options)
    assert_same((loss, metrics, {}), (*expected[:2], {}))
    for name, grad in grads.items():
        assert relative_error(grad, expected[2][name]) < 2**-9 + 1e-4, (
            name
        )  # its own rounding, and fp32's
    assert_same(mine, liger(batch, **options), torch.bfloat16)


@pytest.mark.parametrize("loss_type, level", VARIANTS)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_what_is_left_out_is_not_read(loss_type, level, beta):
    """Nan and -100 outside of the mask; without a KL also in the rollouts with advantage 0."""
    options = dict(
        loss_type=loss_type, importance_sampling_level=level, max_completion_length=9, beta=beta
    )
    batch, poisoned = (make_batch(mask="holes", ref="logps" if beta else None) for _ in range(2))
    unused = batch.rest["attention_mask"] == 0
    if beta == 0:
        unused = unused | (batch.rest["advantages"] == 0)[:, None]
    poisoned.rest["selected_token_ids"][unused] = -100
    for padded in (
        poisoned.leaves["_input"],
        poisoned.rest["old_per_token_logps"],
        poisoned.rest.get("ref_per_token_logps"),
    ):
        if padded is not None:
            padded[unused] = NAN
    loss = FusedLinearGRPOLoss(use_ref_model=beta > 0, **options)
    expected, actual = batch.call(loss), poisoned.call(loss)
    assert torch.equal(actual[0], expected[0]) and actual[1] == expected[1]
    assert all(torch.equal(actual[2][name], grad) for name, grad in expected[2].items())
    assert not actual[2]["_input"][unused].any()


def test_luspo_is_ligers_where_liger_does_not_sum_over_padding():
    options = dict(loss_type="luspo", use_ref_model=False, compiled=False)
    cases = [("padded", "sequence", None), ("padded", "sequence", "B1"), ("full", "token", "BT")]
    for mask, level, vllm in cases:
        batch = make_batch(mask=mask, vllm=vllm, ref=None)
        losses = [kind(importance_sampling_level=level, **options) for kind in KINDS]
        assert_same(*map(batch.call, losses))
    narrow, wide = make_batch(width=9), make_batch(width=9)
    for name, value in wide.rest.items():
        if isinstance(value, torch.Tensor) and value.dim() == 2:
            wide.rest[name] = torch.nn.functional.pad(value, (0, 3))
    wide.leaves["_input"] = torch.nn.functional.pad(wide.leaves["_input"], (0, 0, 0, 3))
    of_ours, of_liger = (
        [batch.call(kind(**options))[0].item() for batch in (narrow, wide)] for kind in KINDS
    )
    assert of_ours[0] == of_ours[1] and abs(of_liger[0] - of_liger[1]) > 0.1 * abs(of_liger[0])


def test_as_many_tokens_as_rollouts():
    """One advantage a token and one a rollout have the same shape."""
    batch = make_batch(vllm="BT", mask="empty")
    for b, length in enumerate([2, 1, 0, 1, 0, 1, 2, 1]):
        batch.rest["attention_mask"][b, :length] = 1
    assert_same(batch.call(FusedLinearGRPOLoss()), liger(batch, loss_type="dapo"))


@pytest.mark.parametrize("loss_type", module.LOSS_TYPES)
def test_nothing_to_learn(loss_type):
    """No tokens, or no advantages: loss, metrics and gradients 0, and part of the graph, as with Liger."""
    options = dict(loss_type=loss_type, max_completion_length=9, use_ref_model=False, beta=0.0)
    for batch in (make_batch(mask="empty"), make_batch(advantages=[0.0] * 8)):
        loss, metrics, grads = actual = batch.call(FusedLinearGRPOLoss(**options))
        assert loss == 0 and not any(metrics) and not any(grad.any() for grad in grads.values())
        if loss_type != "luspo":
            assert_same(actual, liger(batch, **options))


def test_backward():
    """Scaled, with a frozen head, and none at all."""
    batch, loss = make_batch(bias=True), FusedLinearGRPOLoss()
    once, fourfold = batch.call(loss), batch.call(loss, factor=-4.0)
    assert all(torch.equal(fourfold[2][name], -4 * grad) for name, grad in once[2].items())
    hidden = batch.leaves["_input"].detach().requires_grad_()
    value, _ = loss(hidden, batch.leaves["lin_weight"], bias=batch.leaves["bias"], **batch.rest)
    value.backward()
    assert torch.equal(hidden.grad, once[2]["_input"])
    with torch.no_grad():
        value, metrics = loss(
            hidden, batch.leaves["lin_weight"], bias=batch.leaves["bias"], **batch.rest
        )
    assert not value.requires_grad and metrics == once[1]
    torch.testing.assert_close(value, once[0])


@pytest.mark.parametrize("num_items", [None, 50, 0])
@pytest.mark.parametrize("loss_type", ["dapo", "vespo", "bnpo"])
def test_ranks(loss_type, num_items, monkeypatch):
    """Of two ranks, whose other one has 11 tokens. Without tokens the divisor is 1, and sums need small advantages."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op=None: tensor.add_(11))
    options = dict(loss_type=loss_type, chunk_size=len(LENGTHS), beta=0.004)
    batch = make_batch(
        num_items=num_items, advantages=[0.1 * advantage for advantage in ADVANTAGES]
    )
    assert_same(batch.call(FusedLinearGRPOLoss(**options)), liger(batch, **options))


def test_signature_is_ligers():
    for of_ours, of_liger in (
        (FusedLinearGRPOLoss, LigerLoss),
        (FusedLinearGRPOLoss.forward, LigerLoss.forward),
    ):
        ours, theirs = (inspect.signature(call).parameters.values() for call in (of_ours, of_liger))
        assert [(p.name, p.default, p.kind) for p in ours] == [
            (p.name, p.default, p.kind) for p in theirs
        ]


def test_settings_are_read_at_each_call():
    batch, loss = make_batch(), FusedLinearGRPOLoss()
    loss.beta = 0.3
    assert batch.call(loss)[0] == batch.call(FusedLinearGRPOLoss(beta=0.3))[0]


def test_does_not_import_liger(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # an import raises
    spec = importlib.util.spec_from_file_location("liger_alone", module.__file__)
    monkeypatch.setitem(
        sys.modules, spec.name, importlib.util.module_from_spec(spec)
    )  # where dataclass looks
    spec.loader.exec_module(sys.modules[spec.name])


def test_computed_tokens():
    """The example in its docstring."""
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    tokens = ComputedTokens.of(mask)
    assert tokens.packed.row_index.tolist() == [0, 1, 6, 8]
    assert tokens.packed.cu_seqlens.tolist() == [0, 2, 2, 4]
    assert tokens.completion_index.tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(loss_type="ppo"), "loss_type: expected one of grpo, .*, got 'ppo'"),
        (
            dict(importance_sampling_level="turn"),
            "importance_sampling_level: expected one of token, sequence, got 'turn'",
        ),
        (
            dict(importance_sampling_level="sequence", loss_type="cispo"),
            "importance_sampling_level: expected 'token' with loss_type",
        ),
        (
            dict(importance_sampling_level="sequence", use_bias_correction_kl=True),
            "use_bias_correction_kl: expected False",
        ),
        (dict(beta=-0.1), "beta: expected a finite number of at least 0, got -0.1"),
        (dict(epsilon_low=-0.1), "epsilon_low: .*got -0.1"),
        (dict(epsilon_high=None), "epsilon_high: expected a finite number of at least 0, got None"),
        (dict(epsilon_high=float("inf")), "epsilon_high: .*got inf"),
        (dict(temperature=0), "temperature: expected a finite number above 0, got 0"),
        (dict(sapo_temperature_pos=0.0), "sapo_temperature_pos: .*got 0.0"),
        (dict(sapo_temperature_neg=-1.0), "sapo_temperature_neg: .*got -1.0"),
        (dict(delta=0.9), "delta: expected None or a finite number of at least 1, got 0.9"),
        (
            dict(loss_type="dr_grpo"),
            "max_completion_length: expected more than 0 with loss_type 'dr_grpo', got None",
        ),
    ],
)
def test_refused_settings(options, words):
    """At construction, and at the call after a change."""
    with pytest.raises(ValueError, match=words):
        FusedLinearGRPOLoss(**options)
    loss, batch = FusedLinearGRPOLoss(), make_batch()
    for name, value in options.items():
        setattr(loss, name, value)
    with pytest.raises(ValueError, match=words):
        batch.call(loss)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            dict(_input=torch.zeros(8 * 9, H)),
            r"_input: expected shape \[any, any, any\], got \[72, 35\]",
        ),
        (
            dict(selected_token_ids=torch.zeros(8, 8, dtype=torch.int64)),
            r"selected_token_ids: expected shape \[8, 9\], got",
        ),
        (
            dict(selected_token_ids=torch.zeros(8, 9)),
            "selected_token_ids: expected dtype .*int64.*, got torch.float32",
        ),
        (dict(selected_token_ids=torch.full((8, 9), V)), r"targets: expected values in \[0, 211\)"),
        (
            dict(attention_mask=torch.ones(8, 1)),
            r"attention_mask: expected shape \[8, 9\], got \[8, 1\]",
        ),
        (
            dict(attention_mask=torch.full((8, 9), 0.5)),
            "attention_mask: expected 0 or 1 everywhere, got 72 other values",
        ),
        (dict(attention_mask=None), "attention_mask: expected a tensor, got NoneType"),
        (dict(_input=[0.0]), "_input: expected a tensor, got list"),
        (dict(advantages=torch.zeros(8, 9)), r"advantages: expected shape \[8\], got \[8, 9\]"),
        (
            dict(old_per_token_logps=torch.zeros(72)),
            r"old_per_token_logps: expected shape \[8, 9\], got \[72\]",
        ),
        (
            dict(ref_per_token_logps=None),
            "ref_input: expected a tensor with beta and use_ref_model, or ref_per.*, got None",
        ),
        (
            dict(ref_per_token_logps=None, ref_input=torch.zeros(8, 9, H)),
            "ref_weight: expected a tensor",
        ),
        (
            dict(vllm_is_ratio=torch.ones(9)),
            r"vllm_is_ratio: expected one of the shapes \[8\], \[8, 1\], \[8, 9\], got \[9\]",
        ),
        (dict(vllm_is_ratio=-torch.ones(8)), "vllm_is_ratio: expected at least 0 everywhere"),
        (
            dict(num_items_in_batch=torch.ones(8)),
            r"num_items_in_batch: expected one number, got shape \[8\]",
        ),
    ],
)
def test_refused_at_the_call(changes, words):
    batch = make_batch()
    with pytest.raises(ValueError, match=words):
        FusedLinearGRPOLoss()(**batch.leaves | batch.rest | changes)
