"""Parts of bench/vote.py and bench/vote_quality.py."""
