"""TTRL's strip_string, from a file of a checkout: other projects' code is compared with here, not copied.

The file is verl/verl/utils/reward_score/ttrl/qwen/qwen_math_parser.py of PRIME-RL/TTRL (MIT; the file's own header says
Apache-2.0), which took the function unchanged from evaluation/parser.py of QwenLM/Qwen2.5-Math: either will do. Only the
function and what it calls are run, because the file imports more than they need.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

NAMES = {
    "strip_string",
    "_fix_fracs",
    "_fix_a_slash_b",
    "_fix_sqrt",
    "convert_word_number",
    "unit_texts",
}


def load_strip_string(file: Path) -> Callable[[str], str]:
    from word2number import w2n  # without it convert_word_number does nothing and says nothing

    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if _name(node) in NAMES]
    missing = NAMES - {_name(node) for node in tree.body}
    if missing:
        raise ValueError(
            f"{file}: expected {', '.join(sorted(NAMES))}, got none of {', '.join(sorted(missing))}"
        )
    found = {"re": re, "w2n": w2n}
    exec(compile(tree, str(file), "exec"), found)
    return found["strip_string"]


def _name(node: ast.stmt) -> str | None:
    """What a statement defines or calls a method of: `def f`, `f = ...`, `f.extend(...)`."""
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    call = node.value if isinstance(node, ast.Expr) else None
    holder = (
        call.func.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        else None
    )
    return holder.id if isinstance(holder, ast.Name) else None
