"""What the ops do on a GPU, seen on a fake one: reads on the host, and what dX takes."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from srt_kernels import Objective, linear_logprob, linear_policy_loss
from srt_kernels.core.backend import use_triton
from srt_kernels.testing import packed_rollouts
from support.fake_gpu import Calls, run_on_fake_gpu
from support.ops import LENGTHS, head_leaves

pytestmark = pytest.mark.skipif(
    use_triton(torch.zeros(1)), reason="kernels are compiled functions in the other run"
)
aten = torch.ops.aten
preset = Objective.preset
HALVES = [torch.bfloat16, torch.float16]


def calls_of(op, dtype, **settings):
    """The custom ops, with their arguments, of a forward and a backward pass over 27 tokens.

    Without `scale_`, which reads the factor on the device.
    """
    batch = packed_rollouts(LENGTHS)
    hidden, weight, bias = head_leaves(batch, dtype)
    settings = {"bias": bias, "row_index": batch.row_index, "chunk_rows": 8} | settings
    with Calls() as recorder:
        if op is linear_policy_loss:
            rollouts = (batch.advantages, batch.cu_seqlens)
            loss = op(hidden, weight, batch.targets, *rollouts, **settings).loss
        else:
            loss = op(hidden, weight, batch.targets, **settings)[0].sum()
        loss.backward()
    ops = [call for call in recorder.calls if call[0].namespace == "srt_kernels"]
    return [call for call in ops if call[0] is not torch.ops.srt_kernels.scale_.default]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("unique_rows", [False, True])
@pytest.mark.parametrize(
    "objective, settings, is_tagged",
    [
        (preset("srt", kl_coef=0.1, entropy_coef=0.1), {}, False),
        (preset("srt", correction="token_mask"), {"normalizer": 9.0}, False),
        (preset("gspo"), {"chunk_rows": 27}, True),  # one chunk: no need of the completions' ends
    ],
    ids=["token", "token mask", "sequence in one chunk"],
)
def test_all_rows_read_nothing(dtype, unique_rows, objective, settings, is_tagged, monkeypatch):
    for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs"):
        settings = settings | {name: torch.zeros(27)}
    settings |= {"objective": objective, "all_rows": True, "unique_rows": unique_rows}
    [(op, arguments)] = calls_of(linear_policy_loss, dtype, **settings)
    run_on_fake_gpu(monkeypatch, op, arguments)
    assert (torch.Tag.cudagraph_unsafe in op.tags) == is_tagged


@pytest.mark.parametrize("dtype", HALVES)
def test_linear_logprob_reads_nothing(dtype, monkeypatch):
    calls = calls_of(linear_logprob, dtype)
    assert len(calls) == 2  # forward and backward
    for op, arguments in calls:
        run_on_fake_gpu(monkeypatch, op, arguments)


@pytest.mark.parametrize(
    "objective, settings",
    [(preset("srt"), {}), (preset("gspo"), {"all_rows": True})],
    ids=["active rows", "ends of completions"],
)
def test_an_op_that_reads_is_kept_out_of_graphs(objective, settings, monkeypatch):
    [(op, arguments)] = calls_of(
        linear_policy_loss, torch.bfloat16, objective=objective, **settings
    )
    with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
        run_on_fake_gpu(monkeypatch, op, arguments)
    assert torch.Tag.cudagraph_unsafe in op.tags


@pytest.mark.parametrize("unique_rows", [True, False])
@pytest.mark.parametrize(
    "op, settings",
    [(linear_policy_loss, {"objective": preset("srt"), "all_rows": True}), (linear_logprob, {})],
    ids=["linear_policy_loss", "linear_logprob"],
)
def test_unique_rows_take_no_sum_of_hidden_rows(op, settings, unique_rows, monkeypatch):
    """They are copied into a bf16 dX. Rows that may repeat are sorted, and added in fp32."""
    calls = calls_of(op, torch.bfloat16, unique_rows=unique_rows, **settings)
    writes = [
        (function.overloadpacket, arguments[0].dtype)
        for function, arguments in run_on_fake_gpu(monkeypatch, *calls[-1])
        if function.overloadpacket in (aten.index_copy_, aten.index_put_)
    ]
    repeats = (aten.index_put_, torch.float32)
    expected = (aten.index_copy_, torch.bfloat16) if unique_rows else repeats
    assert writes == 4 * [expected]  # chunks


@pytest.mark.parametrize("dtype", HALVES)
def test_gemms_of_halves_have_fp32_results(dtype, monkeypatch):
    """A bf16 result would be rounded between the parts of a split sum."""
    settings = {"objective": preset("srt"), "all_rows": True, "chunk_rows": None}
    [(op, arguments)] = calls_of(linear_policy_loss, dtype, **settings)
    gemms = [
        function
        for function, _ in run_on_fake_gpu(monkeypatch, op, arguments)
        if function.overloadpacket in (aten.mm, aten.addmm)
    ]
    # Logits, dX and dW of the one chunk.
    assert sorted(map(str, gemms)) == ["aten.mm.dtype", "aten.mm.dtype_out", "aten.mm.dtype_out"]
