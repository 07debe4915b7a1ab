"""The table of docs/scale.md, calculated by `srt-fast plan` when the site is built.

MkDocs loads this file as a hook (mkdocs.yml), so the table cannot differ from the formulas.
`python tools/scale_table.py` prints it.
"""

from __future__ import annotations

from typing import Any

from srt_fast.config import override
from srt_fast.config.recipes import paper_math
from srt_fast.distributed.plan.advice import describe, make_plan
from srt_fast.distributed.plan.devices import find_device
from srt_fast.distributed.plan.memory import GIB
from srt_fast.distributed.plan.run import Cluster, Run
from srt_fast.distributed.plan.shape import find_shape

MARKER = "<!-- the table of tools/scale_table.py -->"
SETTINGS = {
    "train.prompts_per_step": 1024,
    "sampling.group_size": 16,
    "sampling.max_prompt_tokens": 512,
    "sampling.max_new_tokens": 3072,
    "train.token_budget": 16384,
}
DEVICE = "H100-80GB"
TENSOR_PARALLEL = {"Qwen2.5-1.5B": 1, "Qwen2.5-7B": 1, "Qwen2.5-32B": 4, "Llama-3-70B": 4}
GPUS = (8, 16, 64, 256, 1024)
COLUMNS = (
    "model",
    "GPUs",
    "engines",
    "GiB sampling",
    "GiB training",
    "s sampling",
    "s training",
    "s communication",
    "s sync",
    "s step",
    "bound by",
    "settings beside those above",
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for every page. Returns the page that is rendered."""
    if MARKER in markdown:
        markdown = markdown.replace(MARKER, scale_table())
    return markdown


def scale_table() -> str:
    """A row for each model and number of GPUs, with what had to change to make it fit."""
    settings = ", ".join(f"`{name}` {value}" for name, value in SETTINGS.items())
    lines = [
        f"{DEVICE}, recipe `paper_math` with {settings}. Lengths are means.\n",
        "| " + " | ".join(COLUMNS) + " |",
        "| --- " + "| ---: " * (len(COLUMNS) - 3) + "| --- " * 2 + "|",
    ]
    for model in TENSOR_PARALLEL:
        for gpus in GPUS:
            lines.append("| " + " | ".join(_cells(model, gpus)) + " |")
    return "\n".join(lines) + "\n"


def _cells(model: str, gpus: int) -> list[str]:
    size = TENSOR_PARALLEL[model]
    arguments = {"vllm.engine_args": {"tensor_parallel_size": size}} if size > 1 else {}
    config = override(paper_math(), SETTINGS | arguments)
    run = Run(
        shape=find_shape(model),
        cluster=Cluster(device=find_device(DEVICE), gpus=gpus),
        config=config,
        prompt_tokens=config.sampling.max_prompt_tokens,
        completion_tokens=config.sampling.max_new_tokens,
    )
    plan = make_plan(run)
    memory, seconds, changes = plan.fitted_memory, plan.seconds, plan.changes
    if memory is None or seconds is None or changes is None or "gpus" in changes:
        empty = [""] * (len(COLUMNS) - 3)
        return [model, f"{gpus:,}", *empty, f"does not fit: {plan.memory.obstacle}"]
    is_computing = seconds.training.seconds >= seconds.communication.seconds
    longer = seconds.training if is_computing else seconds.communication
    settings = f"`{describe(arguments | changes)}`" if arguments | changes else ""
    if memory.host:
        node = memory.host * min(gpus, run.cluster.gpus_per_node) / GIB
        settings += f", {node:,.0f} GiB of host memory a node"
    return [
        model,
        f"{gpus:,}",
        f"{seconds.engines:,}",
        f"{sum(memory.sampling.values()) / GIB:.0f}",
        f"{sum(memory.training.values()) / GIB:.0f}",
        f"{seconds.sampling.seconds:,.0f}",
        f"{seconds.training.seconds:,.0f}",
        f"{seconds.communication.seconds:,.0f}",
        f"{seconds.weight_sync.seconds:,.1f}",
        f"{seconds.step:,.0f}",
        f"{seconds.sampling.bound}, {longer.bound}",
        settings,
    ]


if __name__ == "__main__":
    print(scale_table())
