"""A CPU as a platform of verl, through verl's own registry. Importing this module registers it.

verl imports it in each of its processes if these variables are set:

    VERL_PLATFORM=cpu
    VERL_USE_EXTERNAL_MODULES=verl_cpu.platform,...
    VERL_ENGINE_DEVICE=cuda    # verl registers its FSDP engine for this name only

In Ray the CPU stands for one GPU, because verl asks for accelerators by that name. Start Ray with
ray_kwargs.ray_init.num_gpus=1.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import distributed

MEMORY_FIGURES = (
    "memory_allocated",
    "memory_reserved",
    "max_memory_allocated",
    "max_memory_reserved",
)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformCUDA):
    """One CPU, with gloo. Weights go to the sampler through shared memory.

    What Ray is asked for is inherited from PlatformCUDA.
    """

    device_name = "cpu"
    vendor_name = "cpu"

    @property
    def device_module(self) -> ModuleType:
        return torch.cpu

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"  # not 0: torch takes a bare number for a CUDA device

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def communication_backend_name(self) -> str:
        return "gloo"

    def is_ipc_supported(self) -> bool:
        return False


# verl calls these of its device module. It also writes 0 for a CPU's memory itself.
torch.cpu.empty_cache = lambda: None
for _name in MEMORY_FIGURES:
    setattr(torch.cpu, _name, lambda: 0)
# verl's own value would be "cpu:gloo,cpu:gloo", which torch refuses.
distributed.initialize_global_process_group_ray = partial(
    distributed.initialize_global_process_group_ray, backend="gloo"
)
