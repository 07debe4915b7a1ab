"""Several ranks: the world, sharded models, the split of the work, and a plan of a run's needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srt_fast.distributed.world import World, WorldError

__all__ = ["World", "WorldError"]


def __getattr__(name: str) -> Any:
    """Import torch when ranks are used. `srt-fast plan` does not need it."""
    if name in __all__:
        import srt_fast.distributed.world

        return getattr(srt_fast.distributed.world, name)
    raise AttributeError(f"module 'srt_fast.distributed' has no attribute {name!r}")
