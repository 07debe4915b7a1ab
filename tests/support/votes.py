"""Completions of two prompts and their majority votes."""

BOXES = [
    r"\boxed{1/2}",
    r"so \boxed{0.5}",
    r"\boxed{3}",
    "no answer",
    r"\boxed{4}",
    r"\boxed{5}",
    "none",
    "none",
]
VOTES = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]  # a tie goes to the first answer
