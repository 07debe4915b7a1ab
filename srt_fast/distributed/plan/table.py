"""Prints a plan as two tables and a verdict."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srt_fast.distributed.plan.advice import MOST_CHANGES, Plan, describe
from srt_fast.distributed.plan.memory import GIB, Memory
from srt_fast.distributed.plan.run import Run
from srt_fast.distributed.plan.seconds import Seconds

WARNING = "A calculation, not a measurement (docs/scale.md)."
PIPE_WIDTH = 120


def print_plan(plan: Plan) -> None:
    """Print a plan on standard output."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(Text(_title(plan.run)))
    console.print(_memory_table(plan.memory))
    for line in verdict(plan):
        console.print(Text(line), soft_wrap=True)
    if plan.seconds:
        console.print(_seconds_table(plan.seconds))
    console.print(Text(WARNING))


def verdict(plan: Plan) -> list[str]:
    """Whether the run fits, what would make it fit, and what to know about the figures."""
    memory, seconds = plan.memory, plan.seconds
    lines = []
    if memory.obstacle is None:
        free = (memory.capacity - memory.peak) / GIB
        lines.append(f"It fits: {free:.1f} GiB of each GPU are free at the peak.")
    else:
        lines.append(f"It does not fit: {memory.obstacle}.")
        if not plan.changes:
            lines.append(f"No change of up to {MOST_CHANGES} settings makes it fit.")
        else:
            lines.append(f"It fits with {describe(plan.changes)}")
            lines.append("The seconds are those with this change.")
    if seconds and seconds.busy_engines < seconds.engines:
        lines.append(
            f"Only {seconds.busy_engines:,} of {seconds.engines:,} engines have prompts: "
            "train.prompts_per_step is smaller than the number of engines."
        )
    if seconds and seconds.sequences_at_once < seconds.sequences:
        lines.append(
            f"An engine samples {seconds.sequences_at_once:,} of its {seconds.sequences:,} "
            "sequences at a time (KV cache, sampling.max_sequences)."
        )
    if memory.host:
        gpus = min(plan.run.cluster.gpus, plan.run.cluster.gpus_per_node)
        lines.append(f"Offload takes {memory.host * gpus / GIB:,.0f} GiB of host memory a node.")
    return lines


def _title(run: Run) -> str:
    shape, cluster, config = run.shape, run.cluster, run.config
    copies = f", {' and '.join(run.copies)}" if run.copies else ""
    return (
        f"{shape.name} ({shape.size / 1e9:.2f}B){copies}; "
        f"{cluster.gpus:,} x {cluster.device.name}, FSDP over {run.shard_ranks:,}, "
        f"tensor parallel {run.tensor_parallel}; "
        f"{config.train.prompts_per_step:,} prompts x {config.sampling.group_size} rollouts of "
        f"{run.prompt_tokens:,} + {run.completion_tokens:,} tokens"
    )


def _memory_table(memory: Memory) -> Table:
    table = Table(
        box=box.SIMPLE_HEAVY,
        pad_edge=False,
    )
    table.add_column("GiB of a rank")
    table.add_column("sampling", justify="right")
    table.add_column("training", justify="right")
    largest = [max(parts, key=lambda part: parts[part]) for parts in _phases(memory)]
    for name in dict.fromkeys([*memory.training, *memory.sampling]):
        cells = []
        for parts, largest_name in zip(_phases(memory), largest, strict=True):
            size = parts.get(name, 0)
            cell = f"{size / GIB:.1f}" if size else ""
            cells.append(Text(cell, style="bold" if name == largest_name else ""))
        if any(cells):
            table.add_row(name, *cells)
    table.add_section()
    table.add_row("sum", *(f"{sum(parts.values()) / GIB:.1f}" for parts in _phases(memory)))
    table.add_row("largest part", *largest)
    table.add_row("moment", "", memory.moment)
    table.add_row("the GPU has", *2 * [f"{memory.capacity / GIB:.1f}"])
    return table


def _phases(memory: Memory) -> tuple:
    return memory.sampling, memory.training


def _seconds_table(seconds: Seconds) -> Table:
    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_column("bound by")
    phases = {
        "sampling": seconds.sampling,
        f"training ({seconds.micro_batches:,} micro-batches)": seconds.training,
        "communication (beside training)": seconds.communication,
        "weight sync": seconds.weight_sync,
    }
    for name, phase in phases.items():
        table.add_row(name, f"{phase.seconds:,.1f}", phase.bound)
    table.add_section()
    table.add_row("step", f"{seconds.step:,.1f}", "")
    return table
