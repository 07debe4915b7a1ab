"""TTRL's strip_string, from a file of a checkout. Code of other projects is compared, not copied.

The file is verl/verl/utils/reward_score/ttrl/qwen/qwen_math_parser.py of PRIME-RL/TTRL (MIT; the
header of the file says Apache-2.0). TTRL took the function unchanged from evaluation/parser.py of
QwenLM/Qwen2.5-Math. Either file will do. Only the function and what it calls are run: the file
imports more than they need.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = {
    "strip_string",
    "_fix_fracs",
    "_fix_a_slash_b",
    "_fix_sqrt",
    "convert_word_number",
    "unit_texts",
}


def load_strip_string(file: Path) -> Callable[[str], str]:
    """The function. Raises ValueError if the file lacks one of NAMES."""
    # Without word2number, convert_word_number silently does nothing.
    from word2number import w2n

    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if _name(node) in NAMES]
    missing = NAMES - {_name(node) for node in tree.body}
    if missing:
        raise ValueError(
            f"{file}: expected {', '.join(sorted(NAMES))}, got none of {', '.join(sorted(missing))}"
        )
    namespace: dict[str, Any] = {"re": re, "w2n": w2n}
    exec(compile(tree, str(file), "exec"), namespace)
    return namespace["strip_string"]


def _name(node: ast.stmt) -> str | None:
    """What a statement defines or calls a method of: `def f`, `f = ...`, `f.extend(...)`."""
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            return function.value.id
    return None
