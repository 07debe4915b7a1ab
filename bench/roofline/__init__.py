"""Parts of bench/model.py."""
