"""Several ranks: the world, sharded models, and the split of the work."""

from srt_fast.distributed.world import ONE_PROCESS, World, WorldError

__all__ = ["ONE_PROCESS", "World", "WorldError"]
