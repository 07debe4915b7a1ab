"""Parts of bench/loss.py: the input of a step, who computes it, and options."""
