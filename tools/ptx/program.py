"""PTX text of one kernel -> its parameters and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

DIRECTIVES = (".loc", ".reg", ".pragma", ".section", ".file")


@dataclass(frozen=True)
class Instruction:
    """One instruction, as `@%p1 add.s32 %r1, %r2, 3`."""

    text: str
    guard: str  # "%p1" or "!%p1"; "" if there is none
    parts: tuple[str, ...]  # ("add", "s32")
    operands: tuple[str, ...]  # ("%r1", "%r2", "3")

    @property
    def name(self) -> str:
        return self.parts[0]

    @property
    def type(self) -> str:
        return self.parts[-1]

    def unknown(self) -> NotImplementedError:
        """The error for what the emulator does not know."""
        return NotImplementedError(f"the emulator does not know this PTX: {self.text}")


@dataclass(frozen=True)
class Program:
    """A kernel: one block has `threads` threads."""

    parameters: tuple[str, ...]
    threads: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # the index of the instruction after the label


def parse(ptx: str, name: str) -> Program:
    """The kernel `name` of a PTX module. Raises ValueError for text that is no PTX of a kernel."""
    start = ptx.find(f".entry {name}(")
    if start < 0:
        raise ValueError(f"ptx: expected a kernel {name}, got none of that name")
    head, brace, body = ptx[start:].partition("\n{")
    body = _without_inline_blocks(body)
    threads = re.search(r"\.reqntid (\d+)", head)
    if not brace or threads is None:
        raise ValueError(f"ptx: expected a body and .reqntid of {name}, got neither or one")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for raw_line in body.splitlines():
        line = raw_line.partition("//")[0].strip()
        if line.startswith(DIRECTIVES):
            continue
        if label := re.fullmatch(r"([$\w]+):", line):
            labels[label[1]] = len(instructions)
            continue
        for statement in filter(None, map(str.strip, line.split(";"))):
            instructions.append(_instruction(statement))
    parameters = re.findall(rf"\b{name}_param_\d+", head)
    return Program(tuple(parameters), int(threads[1]), tuple(instructions), labels)


def _without_inline_blocks(body: str) -> str:
    """The body up to its end. Names that a block `{ .reg .pred name; label: ... }` has of its own
    become the body's.
    """
    body, end, _ = body.partition("\n$L__func_end")
    if not end:
        body = body.rpartition("\n}")[0]
    count = 0

    def rename(match: re.Match) -> str:
        nonlocal count
        count += 1
        text = re.sub(rf"\b{match[1]}\b", f"%p{10**6 + count}", match[2])
        return re.sub(r"\bwaitLoop\b", f"waitLoop{count}", text)

    return re.sub(r"\n\s*\{\s*\.reg \.pred (\w+);(.*?)\n\}", rename, body, flags=re.S)


def _instruction(statement: str) -> Instruction:
    text = " ".join(statement.split())
    match = re.fullmatch(r"(?:@(!?%p\d+) )?([a-z][\w.:]*)(?: (.*))?", text)
    if match is None:
        raise ValueError(f"ptx: expected an instruction, got {text}")
    guard, opcode, operands = match.groups(default="")
    parts = re.split(r"(?<!:)\.(?!:)", opcode)
    return Instruction(text, guard, tuple(parts), tuple(_operands(operands)))


def _operands(text: str) -> list[str]:
    """Split at the commas that are in no brackets."""
    operands = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", text)
    return [" ".join(operand.split()) for operand in operands]
