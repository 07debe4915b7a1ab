"""Packs rollouts into micro-batches: which ones together (pieces), and where their tokens lie."""
