"""`srt-fast plan`: memory and seconds of a run on many GPUs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from srt_fast.config.arguments import configure, split_arguments
from srt_fast.distributed.plan.advice import Plan, make_plan
from srt_fast.distributed.plan.devices import DEVICES, find_device
from srt_fast.distributed.plan.run import Cluster, Run
from srt_fast.distributed.plan.shape import PRESETS, find_shape

DEFAULT_RECIPE = "paper_math"
DESCRIPTION = f"""
Memory of each rank and seconds of each phase of a step, calculated from formulas
(docs/scale.md). Reads no weights and needs no GPU.

RECIPE is a recipe, a YAML or TOML file, as for srt-fast train (default: {DEFAULT_RECIPE}). All
fields of srt-fast train may follow. The plan depends on these:
  --train.prompts-per-step --sampling.group-size --sampling.max-prompt-tokens
  --sampling.max-new-tokens --train.token-budget --train.minibatches
  --model.gradient-checkpointing --model.dtype --model.autocast
  --reward.kind (teacher) --train.reward-kl-coef --train.objective-overrides kl_coef=... (reference)
  --sampling.max-sequences --vllm.gpu-memory-utilization --vllm.kv-cache-gib --vllm.sleep
  --vllm.engine-args tensor_parallel_size=N
  --dist.shard --dist.replicas --dist.cpu-offload --dist.reshard-after-forward
"""
EXAMPLE = """
example: srt-fast plan --model Qwen2.5-32B --gpus 64 --device H100-80GB \\
             --train.prompts-per-step 256 --vllm.engine-args tensor_parallel_size=4
"""


def main(argv: list[str]) -> int:
    """Run the command. Returns the exit code 0. Raises ValueError for bad arguments."""
    recipe = None
    if argv and not argv[0].startswith("-"):
        recipe, *argv = argv
    options, fields = _parser().parse_known_args(argv)
    plan = make_plan(_run(options, recipe or DEFAULT_RECIPE, fields))
    if options.json:
        print(json.dumps(to_json(plan)))
    else:
        # Imported here because rich takes a moment.
        from srt_fast.distributed.plan.table import print_plan

        print_plan(plan)
    return 0


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan for machines. Sizes are in bytes. Seconds are those of the run with the changes."""
    run, durations = plan.run, plan.seconds
    return {
        "model": run.shape.name,
        "parameters": run.shape.size,
        "gpus": run.cluster.gpus,
        "gpus_per_node": run.cluster.gpus_per_node,
        "device": dataclasses.asdict(run.cluster.device),
        "copies": list(run.copies),
        "fits": plan.memory.obstacle is None,
        "obstacle": plan.memory.obstacle,
        "changes": plan.changes,
        "memory": dataclasses.asdict(plan.memory),
        "seconds": durations and dataclasses.asdict(durations) | {"step": durations.step},
    }


def _run(options: argparse.Namespace, recipe: str, fields: list[str]) -> Run:
    shape = find_shape(options.model)
    cluster = Cluster(
        device=find_device(options.device), gpus=options.gpus, gpus_per_node=options.gpus_per_node
    )
    config = configure(split_arguments([recipe, *fields]), "plan")
    return Run(
        shape=shape,
        cluster=cluster,
        config=config,
        prompt_tokens=options.prompt_tokens or config.sampling.max_prompt_tokens,
        completion_tokens=options.completion_tokens or config.sampling.max_new_tokens,
        active=options.active,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srt-fast plan",
        usage="srt-fast plan [RECIPE] --model MODEL --gpus N [OPTIONS] [--FIELD VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description=DESCRIPTION.strip(),
        epilog=EXAMPLE.strip(),
    )
    parser.add_argument(
        "--model",
        required=True,
        help=f"a Hugging Face folder with config.json, or one of {', '.join(PRESETS)}",
    )
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="one rank for each")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--device",
        default="H100-80GB",
        help=f"one of {', '.join(DEVICES)}, or its beginning (default: H100-80GB)",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help="mean length of a prompt (default: sampling.max_prompt_tokens)",
    )
    parser.add_argument(
        "--completion-tokens",
        type=int,
        metavar="N",
        help="mean length of a completion (default: sampling.max_new_tokens)",
    )
    parser.add_argument(
        "--active",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the rollouts that have a gradient; groups that agree have none (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object; sizes in bytes")
    return parser
