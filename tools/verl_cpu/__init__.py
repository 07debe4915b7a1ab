"""What verl 0.9.1 lacks to run on a CPU. tools/verl_run.py uses it."""
