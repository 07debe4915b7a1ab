"""Several ranks: the world, sharded models, the split of the work, and a plan of a run's needs."""
