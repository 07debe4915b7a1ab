"""`srt-fast plan`: what a run needs on many GPUs, calculated from formulas. No torch here.

devices and shape: the figures of GPUs and models. run: what the formulas read of a configuration.
memory and seconds: the formulas, derived in their docstrings. advice: which setting makes a run
fit. command and table: the command line.
"""
