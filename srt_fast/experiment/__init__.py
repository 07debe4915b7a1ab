"""Experiments: a grid of runs, what they show, and the page that says it.

Each run is a process of its own.
"""
