"""bench/model.py: counts agree with what PyTorch counts of real calls on the CPU."""

import json
from dataclasses import replace

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")
import model
from roofline.chips import CHIPS
from roofline.predict import make_chip_batch, predict, trace_step
from roofline.trace import trace_on
from srt_kernels import linear_logprob, linear_policy_loss
from srt_kernels.core.backend import use_triton
from steps.batch import Case, make_batch
from steps.ours import GRPO
from steps.providers import PROVIDERS
from support.memory import MemoryMeter

pytestmark = pytest.mark.skipif(
    use_triton(torch.zeros(1)), reason="kernels are interpreted in the other run"
)
# Ragged: of 5 groups one has advantage 0. On a CPU there is one chunk.
CASE = Case(
    name="padded",
    hidden_size=24,
    vocab_size=333,
    dtype=torch.bfloat16,
    lengths=[3, 9, 1, 4, 2, 8, 6, 5, 7, 3, 3, 9, 4, 4, 1, 2, 9, 8, 7, 6],
    group_size=4,
    unanimous=1,
)
PROVIDER = {provider.name: provider for provider in PROVIDERS}
H200 = CHIPS["H200"]


class InsideOurOps(TorchDispatchMode):
    """Runs the bodies of our ops, so that the mode below sees what they call."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "srt_kernels":
            with self:
                return OPDEFS[f"srt_kernels::{func.overloadpacket.__name__}"]._init_fn(*args)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def batch():
    return make_batch(CASE, torch.device("cpu"))


@pytest.mark.parametrize("name", ["ours", "ours_frozen", "ours_logprob", "ours_logprob_grad"])
@pytest.mark.parametrize("chip", ["H200", "MI300X"])
def test_flops_are_those_that_torch_counts(name, chip, batch):
    step = PROVIDER[name].build(batch)
    # torch counts addmm only.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, InsideOurOps():
        step()
    [prediction] = predict(PROVIDER[name], CASE, [CHIPS[chip]])
    assert prediction.flops == counter.get_total_flops() > 0
    assert 0 < batch.active_tokens < sum(CASE.lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bytes_kept_for_backward_are_those_of_real_tensors(dtype, batch):
    """Of linear_policy_loss the gradients, of linear_logprob nothing beside its results."""

    def run(batch, meter):
        before = meter.live
        hidden = batch.packed.hidden.detach().to(dtype).requires_grad_()
        weight = batch.weight.detach().to(dtype).requires_grad_()
        rollouts = (batch.packed.targets, batch.advantages, batch.cu_seqlens)
        live = [meter.live - before]
        loss = linear_policy_loss(hidden, weight, *rollouts, GRPO)
        live.append(meter.live - before)
        logprobs = linear_logprob(hidden, weight, batch.packed.targets)
        live.append(meter.live - before)
        del loss, logprobs
        return live

    with MemoryMeter() as meter:
        real = run(batch, meter)
    with trace_on(H200) as trace:
        traced = run(make_chip_batch(CASE), trace)
    assert traced == real
    assert real[1] - real[0] > real[2] - real[1] > 0


def test_bytes_and_seconds_of_the_bare_gemms():
    """By hand: each of three GEMMs reads two of x, weight and logits, and writes the third."""
    case = replace(CASE, lengths=[1024] * 8, unanimous=0, hidden_size=4096, vocab_size=16384)
    n, h, v = 8192, 4096, 16384
    [prediction] = predict(PROVIDER["gemms"], case, [H200])
    assert prediction.bytes == 3 * 2 * (n * h + v * h + n * v)
    # 64 x 64, 64 x 16 and 128 x 16 tiles of 128 x 256 on 132 multiprocessors.
    waves = {(n, v): 32, (n, h): 8, (v, h): 16}
    for launch in prediction.launches:
        count = waves[launch.gemm_rows, launch.gemm_columns]
        inner = launch.flops / (2 * launch.gemm_rows * launch.gemm_columns)
        seconds = count * 132 * 2 * 128 * 256 * inner / 813e12
        assert H200.seconds(launch) == pytest.approx(seconds, rel=2e-3)


def test_chunks_follow_the_ops(monkeypatch):
    """More than one chunk: one more GEMM of each kind, and dW is read again."""
    case = replace(CASE, lengths=[512] * 8, unanimous=0, vocab_size=1 << 18)
    launches, peak = trace_step(PROVIDER["ours"], make_chip_batch(case), H200)
    chunks = sum(launch.name == "fused_kernel" for launch in launches)
    assert chunks >= 2
    assert sum(launch.gemm_rows > 0 for launch in launches) == 3 * chunks
    [first, *others] = [launch for launch in launches if launch.gemm_rows == case.vocab_size]
    dweight_bytes = 4 * case.vocab_size * case.hidden_size
    assert all("addmm" in launch.name and launch.bytes > 2 * dweight_bytes for launch in others)
    assert "addmm" not in first.name
    assert peak < 4 * 2**30  # of 4 GiB of logits in all


def test_table_has_measured_figures_beside_predictions(tmp_path, monkeypatch, capsys):
    """A figure of an H200 stands in the H200's row only. That of a CPU stands nowhere."""
    shape = {"hidden_size": 24, "vocab_size": 333, "dtype": "bfloat16"}
    case = shape | {"name": "packed", "tokens": 64, "active_tokens": 64}
    row = {"provider": "ours", "status": "ok", "seconds": 0.125, "peak_bytes": 7 << 20}
    for number, device in enumerate(("NVIDIA H200", "AMD EPYC")):
        where = {"device": device, "date": f"2026-12-0{number + 1}", "commit": "0123456789"}
        document = {"environment": where, "cases": [case | {"rows": [row]}], "made up": True}
        (tmp_path / f"{number}.json").write_text(json.dumps(document))
    (tmp_path / "other.json").write_text("[]")
    arguments = ["--chips", "H200", "H100", "--results", str(tmp_path), "--launches"]
    arguments += ["--out", str(tmp_path / "model.md"), "--steps", "ours", "gemms"]
    arguments += ["--case", "--shape 24,333 --tokens 64 --rollouts 0"]
    model.main(model.parse_options(arguments))
    text = (tmp_path / "model.md").read_text()
    lines = [line for line in text.splitlines() if "| 125.0 " in line]
    assert len(lines) == 1 and "| ours " in lines[0] and "| 0123456 " in lines[0]
    assert text.index("**H200") < text.index(lines[0]) < text.index("**H100")
    predicted = [name for name in model.COLUMNS[2:] if "measured" not in name.split("(")[0]]
    assert len(predicted) == 7 and all(name.endswith(model.PREDICTED) for name in predicted)
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["measured"] is not None for row in rows] == [True, False, False, False]
