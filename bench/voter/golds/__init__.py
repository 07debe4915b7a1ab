"""Gold answers of many sets: respelled, merged and split by the vote's keys."""
