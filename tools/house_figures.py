"""Measures how a codebase reads. The figures stand in LOG.md, beside those of other codebases.

usage: python tools/house_figures.py SOURCE [SOURCE ...]

A SOURCE is a folder of Python files, or several with commas between: srt_fast,kernels/srt_kernels.
Each is one row of the table. The last line of the output is one JSON document.

- wide: the share of lines that are wider than 100 columns.
- tuples: assignments of unrelated values in one statement, in a thousand lines. `a, b = f(x), g(y)`
  counts. A swap, and the unpacking of one value, do not.
- names: the share of names that are pronouns, participles, quantifiers or adverbs (WORDS). A name
  is a function, class, parameter or variable, counted once in its scope.
- folder: the most Python files in one folder, without __init__.py.
- circles: groups of modules that import each other in a circle. Imports inside functions count.
  Imports for type checkers do not.
- function: the median length of a function in lines, and the share above 40 lines.
- README: words and lines of the README.md of the folder, or of the nearest one above it.

tools/reward_walk.py measures the walk of a rewards tensor.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

WIDTH = 100
LONG_FUNCTION = 40
PRONOUNS_AND_QUANTIFIERS = """
    all another any anybody anyone anything both each either enough every everybody everyone
    everything few fewer he her hers him his it its itself least less many me mine more most much my
    neither nobody none nothing one other others our ours own she some somebody someone
    something such that their theirs them these they this those us we what whatever which who whom
    whose you your yours
"""
# Without read, run, set, split, put, cut, let, and hidden (states): they are words of the field.
PARTICIPLES = """
    added asked began begun broken brought called carried caught changed chosen come computed
    counted dealt done drawn dropped expected failed fed filled finished found gathered given gone
    got had heard held helped joined judged kept known labelled laid left lent lost made
    meant measured met named needed paid picked placed planned reached rejected seen sent served
    shown skipped sorted spent stopped stored taken taught thrown told tried turned used wanted
    written
"""
ADVERBS = """
    after afterwards again ahead almost already also always anyway apart away before behind below
    beside else ever further hence here how instead just later maybe merely never now often once
    only perhaps quite rather rest soon still then there though thus together too twice very when
    whenever where wherever why yet
"""
WORDS = frozenset(f"{PRONOUNS_AND_QUANTIFIERS} {PARTICIPLES} {ADVERBS}".split())

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def main(arguments: list[str]) -> int:
    """Print the table and the JSON line. Returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    rows = {argument: measure([Path(p) for p in argument.split(",")]) for argument in arguments}
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    print(" " * width, *(f"{column:>18}" for column in columns))
    for name, row in rows.items():
        print(f"{name:{width}}", *(f"{row[column]:>18}" for column in columns))
    print(json.dumps(rows))
    return 0


def measure(folders: list[Path]) -> dict[str, float]:
    """The figures of these folders as one codebase. Raises ValueError without Python files."""
    files = sorted(path for folder in folders for path in python_files(folder))
    if not files:
        raise ValueError(f"SOURCE: expected folders with Python files, got {folders}")
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = [line for text in texts.values() for line in text.splitlines()]
    names = [name for tree in trees.values() for name in names_of(tree)]
    lengths = [length for tree in trees.values() for length in function_lengths(tree)]
    readme = nearest_readme(folders[0])
    return {
        "lines": len(lines),
        "wide_percent": percent(sum(len(line) > WIDTH for line in lines), len(lines)),
        "tuples_per_1000": round(
            1000 * sum(tuple_assignments(tree) for tree in trees.values()) / len(lines), 1
        ),
        "names_percent": percent(sum(is_vague(name) for name in names), len(names)),
        "files_in_folder": largest_folder(files),
        "circles": len(circles(import_graph(folders, trees))),
        "function_median": statistics.median(lengths) if lengths else 0,
        "function_over_40": percent(sum(n > LONG_FUNCTION for n in lengths), len(lengths)),
        "readme_words": len(readme.split()),
        "readme_lines": len(readme.splitlines()),
    }


def percent(part: int, whole: int) -> float:
    """A share in per cent, with two digits."""
    return round(100 * part / max(whole, 1), 2)


def python_files(folder: Path) -> Iterator[Path]:
    """Python files below a folder, without hidden folders and what builds leave behind."""
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part in ("build", "__pycache__") for part in parts):
            yield path


def tuple_assignments(tree: ast.AST) -> int:
    """The number of statements that assign unrelated values to as many targets."""
    count = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        values = sorted(ast.unparse(value) for value in node.value.elts)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and len(target.elts) == len(values):
                names = sorted(ast.unparse(element) for element in target.elts)
                count += names != values
    return count


def names_of(tree: ast.AST) -> Iterator[str]:
    """Names that a module defines: functions, classes, parameters and variables of each scope."""
    pending: list[ast.AST] = [tree]
    while pending:
        scope = pending.pop()
        names: set[str] = set()
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            names |= {node.arg for node in ast.walk(scope.args) if isinstance(node, ast.arg)}
        inside = list(ast.iter_child_nodes(scope))
        while inside:
            node = inside.pop()
            if isinstance(node, Scope):
                names.add(node.name)
                pending.append(node)
                continue
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            inside.extend(ast.iter_child_nodes(node))
        yield from (name for name in names if name.strip("_") and name not in ("self", "cls"))


def is_vague(name: str) -> bool:
    """Whether a name is a word of WORDS."""
    return not name.startswith("__") and name.strip("_").lower() in WORDS


def largest_folder(files: list[Path]) -> int:
    """The most files in one folder, without __init__.py."""
    counts: dict[Path, int] = {}
    for path in files:
        if path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    return max(counts.values(), default=0)


def function_lengths(tree: ast.AST) -> Iterator[int]:
    """Lines of each function, with its docstring, without its decorators."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def import_graph(folders: list[Path], trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Which module imports which other module of the codebase."""
    modules: dict[str, Path] = {}
    for path in trees:
        folder = next(folder for folder in folders if path.is_relative_to(folder))
        dotted = [folder.resolve().name, *path.relative_to(folder).with_suffix("").parts]
        modules[".".join(dotted[:-1] if dotted[-1] == "__init__" else dotted)] = path
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set(imported(trees[path], package, set(modules))) - {name}
    return graph


def imported(tree: ast.Module, package: str, modules: set[str]) -> Iterator[str]:
    """Which of these modules a module imports. `package` is the one that it lies in.

    `from package import name` imports the package itself only if the name is no module.
    """
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from {name if name in modules else base for name in names} & modules
        pending.extend(ast.iter_child_nodes(node))


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected groups of more than one module."""
    reach = {module: reachable(graph, module) for module in graph}
    groups: list[set[str]] = []
    for module in graph:
        group = {other for other in reach[module] if module in reach[other]}
        if len(group) > 1 and group not in groups:
            groups.append(group)
    return groups


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Modules on the ways from a module, itself only if it lies on a circle."""
    modules: set[str] = set()
    pending = list(graph[start])
    while pending:
        module = pending.pop()
        if module not in modules:
            modules.add(module)
            pending.extend(graph[module])
    return modules


def nearest_readme(folder: Path) -> str:
    """The text of README.md in a folder or above it. Empty if there is none."""
    for parent in [folder.resolve(), *folder.resolve().parents][:4]:
        path = parent / "README.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
