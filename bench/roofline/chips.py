"""GPUs of the performance model, and the seconds that a launch takes on them: a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from roofline.launches import Launch
from srt_fast.distributed.plan.devices import DEVICES

# Assumed: the tile of the library's GEMMs. A multiprocessor computes one at a time.
TILE_ROWS = 128
TILE_COLUMNS = 256
# Shares of a data sheet's peaks that large calls reach. Measured on one H200 through PyTorch
# (2026-10-28): 788 TFLOP/s in an 8192^3 bf16 product of random data, whose 2048 tiles take 16 waves
# on 132 multiprocessors; 4.3 TB/s in a copy of 8.6 GB. Assumed for all chips and types.
FLOPS_SHARE = 788 / 989 * 16 * 132 / 2048
BANDWIDTH_SHARE = 4.3 / 4.8
OWN_GEMM_SHARE = 600 / 989  # assumed: what other Triton GEMMs reach on Hopper is 550 to 650 TFLOP/s
LAUNCH_SECONDS = 3e-6  # assumed: the least time from a small launch to the next in a stream


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A GPU. Bandwidths and rates are peaks of data sheets, in bytes and FLOPs a second."""

    name: str
    reported: str  # part of the name that the driver reports
    architecture: str  # sm_90 or gfx942
    memory: float  # bytes
    bandwidth: float
    bf16: float  # dense products, sums in fp32; fp16 has the same
    fp32: float  # products of fp32 operands without TF32
    multiprocessors: int
    l2_bandwidth: float | None  # bytes a second that all multiprocessors read; None: no source
    source: str

    @property
    def is_cuda(self) -> bool:
        return self.architecture.startswith("sm_")

    def seconds(self, launch: Launch) -> float:
        """Predicted: the longest of arithmetic, memory, L2 cache and launch."""
        share = OWN_GEMM_SHARE if launch.l2_bytes else FLOPS_SHARE
        rate = share * (self.fp32 if launch.is_fp32 else self.bf16)
        l2_seconds = launch.l2_bytes / self.l2_bandwidth if self.l2_bandwidth else 0.0
        return max(
            launch.flops / rate * self._waves(launch),
            launch.bytes / (BANDWIDTH_SHARE * self.bandwidth),
            l2_seconds,
            LAUNCH_SECONDS,
        )

    def _waves(self, launch: Launch) -> float:
        """Whole waves of a GEMM's tiles over its waves: the last one takes as long as a full one.

        1 for a launch that is no GEMM of the library.
        """
        if launch.gemm_rows == 0:
            return 1.0
        tiles = -(-launch.gemm_rows // TILE_ROWS) * -(-launch.gemm_columns // TILE_COLUMNS)
        return -(-tiles // self.multiprocessors) * self.multiprocessors / tiles


def _nvidia(
    plan_name: str,
    reported: str,
    architecture: str,
    multiprocessors: int,
    fp32: float,
    l2_bandwidth: float | None,
    source: str,
) -> Chip:
    """A GPU that `srt-fast plan` knows."""
    device = DEVICES[plan_name]
    return Chip(
        name=plan_name.split("-")[0],
        reported=reported,
        architecture=architecture,
        memory=device.memory,
        bandwidth=device.memory_bandwidth,
        bf16=device.flops,
        fp32=fp32,
        multiprocessors=multiprocessors,
        l2_bandwidth=l2_bandwidth,
        source=f"{device.source}; {source}",
    )


HOPPER = (
    "132 multiprocessors and 67 TFLOP/s of fp32: NVIDIA H100 architecture white paper, SXM5; L2 "
    "cache: 5.5 TB/s, the lower end of what docs/kernels.md expects (an H100 PCIe reads so fast: "
    "Chips and Cheese, 2023)"
)
CHIPS = {
    chip.name: chip
    for chip in (
        _nvidia("H200-141GB", "H200", "sm_90", 132, 67e12, 5.5e12, HOPPER),
        _nvidia("H100-80GB", "H100 80GB HBM3", "sm_90", 132, 67e12, 5.5e12, HOPPER),
        _nvidia(
            "B200-180GB",
            "B200",
            "sm_100",
            148,
            75e12,
            None,
            "148 multiprocessors: what the driver reports; HGX B200: 600 TFLOP/s of fp32 for 8",
        ),
        Chip(
            name="MI300X",
            reported="MI300X",
            architecture="gfx942",
            memory=192e9,
            bandwidth=5300e9,
            bf16=1307.4e12,
            fp32=163.4e12,
            multiprocessors=304,
            l2_bandwidth=None,
            source="AMD Instinct MI300X data sheet",
        ),
        _nvidia(
            "A100-80GB",
            "A100-SXM4-80GB",
            "sm_80",
            108,
            19.5e12,
            7.2e12,
            "NVIDIA A100 architecture white paper: 108 multiprocessors, 19.5 TFLOP/s of fp32, "
            "L2 cache 5120 bytes a clock at 1.41 GHz",
        ),
    )
}


def find_chip(device: str) -> Chip | None:
    """The chip with the name that a driver reports. None for a CPU and for other GPUs."""
    return next((chip for chip in CHIPS.values() if chip.reported in device), None)
