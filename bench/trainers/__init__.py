"""Parts of bench/bench_trainers.py."""
