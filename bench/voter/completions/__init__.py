"""Completions with the answer that a careful reader finds in them."""
