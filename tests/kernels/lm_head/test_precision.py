"""The process's settings of fp32 GEMMs: what ours change of them, and that it is undone."""

import pytest
import torch

from srt_kernels.lm_head import gemm

CUDA = torch.backends.cuda.matmul
MKLDNN = torch.backends.mkldnn.matmul


def choose_nothing():
    pass


def choose_older():
    CUDA.allow_tf32 = True


def choose_older_medium():
    torch.set_float32_matmul_precision("medium")


def choose_newer():
    CUDA.fp32_precision = "tf32"


def choose_for_all():
    torch.backends.fp32_precision = "tf32"


def read(getter):
    try:
        return getter()
    except RuntimeError:
        return "raises"


def settings():
    """What all getters say. They raise if the process has mixed torch's two interfaces."""
    return (
        CUDA.fp32_precision,
        MKLDNN.fp32_precision,
        read(lambda: CUDA.allow_tf32),
        read(torch.get_float32_matmul_precision),
    )


@pytest.fixture(autouse=True)
def default_settings():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = CUDA.fp32_precision = MKLDNN.fp32_precision = "none"


@pytest.mark.parametrize(
    "choose",
    [choose_nothing, choose_older, choose_older_medium, choose_newer, choose_for_all],
)
def test_settings_are_as_before(choose):
    choose()
    before = settings()
    with gemm._without_tf32():
        precision, _, allows_tf32, older = settings()
        assert precision in ("ieee", "none") and allows_tf32 is False
        assert older == "highest" or "raises" in before
    assert settings() == before
    with gemm._bf16_operands(True):
        assert MKLDNN.fp32_precision == "bf16"
    assert settings() == before


def test_inherited_settings_stay_inherited():
    torch.backends.fp32_precision = "tf32"
    with gemm._without_tf32(), gemm._bf16_operands(True):
        pass
    torch.backends.fp32_precision = "ieee"
    assert CUDA.fp32_precision == MKLDNN.fp32_precision == "ieee"
