"""The rules of bench/aot.py, for each kernel's largest variant on each GPU.

No spills, 128-bit loads, shared memory that the chip has, tensor cores. Needs no GPU: the kernels
are compiled and not run.
"""

import importlib
import pkgutil

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1: the interpreter compiles nothing", allow_module_level=True)

from triton.runtime.jit import JITFunction  # noqa: E402

import aot  # noqa: E402
import srt_kernels  # noqa: E402
from compiled import variants  # noqa: E402
from srt_kernels.lm_head import logits_kernel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
# Of a kernel's variants, the largest one comes first.
FIRST = {variant.kernel: variant for variant in reversed(aot.VARIANTS)}
ONES = {variant.kernel: variant for variant in aot.VARIANTS if "one " in variant.name}
HOPPER = aot.CHIPS["90"]


def variant_of(kernel, name):
    [variant] = [v for v in aot.VARIANTS if (v.kernel, v.name) == (kernel, name)]
    return variant


def check(variant, chip):
    assert aot.broken_rules(aot.compile_variant(variant, chip), variant, chip) == []


def test_every_kernel_has_variants():
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(srt_kernels.__path__, "srt_kernels.")
    ]
    values = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, JITFunction)
    ]
    assert set(FIRST) == {value.__name__ for value in values if value.__name__.endswith("_kernel")}


@pytest.mark.parametrize("chip", aot.LARGE_CHIPS)
@pytest.mark.parametrize("kernel", FIRST)
def test_rules(kernel, chip):
    check(FIRST[kernel], aot.CHIPS[chip])


@pytest.mark.parametrize("chip", sorted(aot.CHIPS.keys() - aot.LARGE_CHIPS))
def test_tiles_fit_smaller_gpus(chip):
    """99 KiB of shared memory a block, of which only the tiles of a GEMM take more than a few."""
    check(FIRST["tiles_kernel"], aot.CHIPS[chip])


@pytest.mark.parametrize("kernel", ONES)
def test_sizes_of_one(kernel):
    """The JIT makes a constant of an argument that is 1.

    Triton's language treats it differently.
    """
    check(ONES[kernel], HOPPER)


def test_wide_vocabulary_block_spills(monkeypatch):
    """The rule sees spills where there are some."""
    monkeypatch.setattr(logits_kernel, "BLOCK", 8 * logits_kernel.BLOCK)
    variant = variant_of("stats_kernel", "plain")
    compiled = aot.compile_variant(variant, HOPPER)
    assert compiled.spilled > 0 and compiled.spills > 0
    assert aot.broken_rules(compiled, variant, HOPPER)[0].startswith("spills")


@pytest.mark.parametrize("kernel", ["stats_kernel", "fused_kernel"])
def test_odd_vocabulary(kernel):
    """Loads are wide: rows are padded in memory."""
    [variant] = [v for v in aot.VARIANTS if v.kernel == kernel and "V 50257" in v.name]
    check(variant, HOPPER)


def test_rows_without_padding_have_no_wide_loads(monkeypatch):
    """The rule sees narrow loads. Of 50257 logits no four are known to be in the row together."""
    monkeypatch.setattr(variants, "padded_columns", lambda vocab_size: vocab_size)
    variant = variant_of("stats_kernel", "V 50257")
    compiled = aot.compile_variant(variant, HOPPER)
    assert compiled.wide_loads == 0 and compiled.narrow_loads >= 16
    assert aot.broken_rules(compiled, variant, HOPPER)[0].startswith("128-bit loads")


@pytest.mark.parametrize(
    "arch, registers, shared, warps, occupancy",
    [
        ("90", 32, 0, 4, 64),  # all 64: there are registers for 128
        ("90", 255, 0, 8, 8),  # two warps in each quarter of the registers: one block of eight
        ("90", 129, 0, 4, 12),  # 136 are taken: three in each quarter
        ("90", 32, 112 << 10, 4, 8),  # two blocks of 113 KiB in 228
        ("80", 32, 112 << 10, 4, 4),  # one in 164
        ("90", 257, 0, 8, 0),  # a warp in each quarter, and the block has eight
        ("gfx942", 96, 0, 8, 16),  # five waves in each SIMD: two blocks of eight
    ],
)
def test_occupancy(arch, registers, shared, warps, occupancy):
    assert aot.CHIPS[arch].occupancy(registers, shared, warps) == occupancy
