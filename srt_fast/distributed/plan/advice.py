"""A run's plan: its memory, the first settings with which it fits, and its seconds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from srt_fast.config import override
from srt_fast.distributed.plan.memory import Memory, memory
from srt_fast.distributed.plan.run import Run
from srt_fast.distributed.plan.seconds import Seconds, seconds

Changes = dict[str, Any]
"""Fields of the configuration, and "gpus"."""
MOST_CHANGES = 3
UTILIZATIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Of vllm.gpu_memory_utilization. The largest that fits gives sampling the most room."""
FACTORS = (2, 4, 8, 16, 32)  # of the number of GPUs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs."""

    run: Run
    memory: Memory
    """Of the run as it is."""
    changes: Changes | None = None
    """With these it fits. Empty: it fits as it is. None: no MOST_CHANGES settings make it fit."""
    fitted_memory: Memory | None = None
    """With the changes."""
    seconds: Seconds | None = None
    """With the changes."""


def make_plan(run: Run) -> Plan:
    """Memory and seconds of a run, and what makes it fit."""
    changes = first_fit(run)
    if changes is None:
        return Plan(run=run, memory=memory(run))
    fitted = apply(run, changes)
    fitted_memory = memory(fitted)
    return Plan(
        run=run,
        memory=memory(run),
        changes=changes,
        fitted_memory=fitted_memory,
        seconds=seconds(fitted, fitted_memory),
    )


def first_fit(run: Run) -> Changes | None:
    """The first changes with which the run fits: as few as possible, the cheapest first.

    Empty if it fits as it is. None if no MOST_CHANGES settings make it fit.
    """
    settings = _alternatives(run)
    for count in range(MOST_CHANGES + 1):
        for chosen in itertools.combinations(settings, count):
            for alternatives in itertools.product(*chosen):
                changes: Changes = {}
                for alternative in alternatives:
                    changes |= alternative
                if _fits(run, changes):
                    return changes
    return None


def apply(run: Run, changes: Changes) -> Run:
    """The run with these changes. Raises ValueError where they do not fit together."""
    fields = dict(changes)
    gpus = fields.pop("gpus", run.cluster.gpus)
    config = override(run.config, fields)
    return replace(run, config=config, cluster=replace(run.cluster, gpus=gpus))


def describe(changes: Changes) -> str:
    """The changes as arguments of the command line."""
    words = []
    for name, value in changes.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, dict):
            words.append(option)
            words += [f"{key}={entry}" for key, entry in value.items()]
        else:
            words.append(f"{option} {value}")
    return " ".join(words)


def _alternatives(run: Run) -> list[list[Changes]]:
    """For each setting its other values. The setting that costs least comes first."""
    config, budget = run.config, run.config.train.token_budget
    budgets = []
    while budget // 2 >= run.longest_sequence:
        budget //= 2
        budgets.append(budget)
    utilizations = UTILIZATIONS if config.vllm.kv_cache_gib is None else ()
    sizes = [2**power for power in range(1, run.cluster.gpus_per_node.bit_length())]
    arguments = [
        {"vllm.engine_args": dict(config.vllm.engine_args) | {"tensor_parallel_size": size}}
        for size in sizes
        if size > run.tensor_parallel
    ]
    return [
        [{"vllm.gpu_memory_utilization": utilization} for utilization in utilizations],
        [{"dist.reshard_after_forward": True}],
        [{"model.gradient_checkpointing": True}],
        [{"train.token_budget": budget} for budget in budgets],
        arguments,
        [{"dist.replicas": 1, "dist.shard": 0}],
        [{"dist.cpu_offload": True}],
        [{"gpus": factor * run.cluster.gpus} for factor in FACTORS],
    ]


def _fits(run: Run, changes: Changes) -> bool:
    try:
        changed = apply(run, changes)
    except ValueError:  # such as more GPUs in an engine than divide the model's heads
        return False
    return memory(changed).obstacle is None
