"""Several ranks: the world, sharded models, and the split of the work."""

from srt_fast.distributed.world import World, WorldError

__all__ = ["World", "WorldError"]
