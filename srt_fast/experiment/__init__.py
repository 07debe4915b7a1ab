"""Experiments: a grid of runs, what they show, and the page that says it.

No torch here: each run is a process of its own.
"""
