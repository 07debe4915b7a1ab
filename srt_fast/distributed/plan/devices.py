"""GPUs that `srt-fast plan` knows, with the figures of NVIDIA's data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU in a node of its kind. Bandwidths are peaks of one direction.

    A data sheet's GB is 1e9 bytes here. Drivers report up to 7 % more memory, so the plan is on the
    safe side.
    """

    name: str
    memory: float
    """Bytes."""
    flops: float
    """bfloat16 FLOP/s of dense matrix products, with accumulation in float32."""
    memory_bandwidth: float
    """Bytes/s between the GPU and its memory."""
    link_bandwidth: float
    """Bytes/s from this GPU to the others of its node, by NVLink."""
    network_bandwidth: float
    """Bytes/s from this GPU to other nodes: one network adapter for each GPU."""
    host_bandwidth: float
    """Bytes/s between this GPU and the host's memory, by PCIe."""
    source: str


DEVICES = {
    device.name: device
    for device in (
        Device(
            name="A100-80GB",
            memory=80e9,
            flops=312e12,
            memory_bandwidth=2039e9,
            link_bandwidth=300e9,
            network_bandwidth=25e9,
            host_bandwidth=32e9,
            source="NVIDIA A100 80GB SXM and DGX A100 data sheets: NVLink 600 GB/s both ways, "
            "8 x 200 Gb/s, PCIe 4.0 x16",
        ),
        Device(
            name="H100-80GB",
            memory=80e9,
            flops=989e12,
            memory_bandwidth=3350e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
            host_bandwidth=64e9,
            source="NVIDIA H100 SXM and DGX H100 data sheets: 1,979 TFLOP/s with sparsity, NVLink "
            "900 GB/s both ways, 8 x 400 Gb/s, PCIe 5.0 x16",
        ),
        Device(
            name="H200-141GB",
            memory=141e9,
            flops=989e12,
            memory_bandwidth=4800e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
            host_bandwidth=64e9,
            source="NVIDIA H200 SXM and DGX H200 data sheets: 1,979 TFLOP/s with sparsity, NVLink "
            "900 GB/s both ways, 8 x 400 Gb/s, PCIe 5.0 x16",
        ),
        Device(
            name="B200-180GB",
            memory=180e9,
            flops=2250e12,
            memory_bandwidth=8000e9,
            link_bandwidth=900e9,
            network_bandwidth=50e9,
            host_bandwidth=64e9,
            source="NVIDIA DGX B200 data sheet, for 8 GPUs: 1,440 GB, 64 TB/s, NVLink 14.4 TB/s "
            "both ways, 8 x 400 Gb/s, PCIe 5.0 x16; HGX B200: 4.5 PFLOP/s with sparsity a GPU. The "
            "chip has 192 GB, of which a DGX offers 180",
        ),
    )
}


def find_device(name: str) -> Device:
    """A device by its name, in any case. "h100" finds "H100-80GB". Raises ValueError."""
    matches = [device for key, device in DEVICES.items() if key.lower().startswith(name.lower())]
    if len(matches) != 1:
        raise ValueError(f"--device: expected one of {', '.join(DEVICES)}, got {name!r}")
    return matches[0]
