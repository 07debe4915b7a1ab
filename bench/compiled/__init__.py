"""Parts of bench/aot.py."""
