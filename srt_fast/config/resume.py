"""The settings that a resumed run may change."""

from __future__ import annotations

from typing import Any

from srt_fast.config.overrides import to_dict
from srt_fast.config.schema import Config

MAY_CHANGE = (
    "run_dir",
    "train.steps",
    "log.",
    "checkpoint.",
    "evaluation.every",
    "reward.audit_groups",
    "vllm.urls",
    "vllm.transfer",
    "vllm.timeout",
    "vllm.start_timeout",
    "vllm.max_logprob_mismatch",
    "vllm.mean_logprob_mismatch",
    "vllm.sleep",
    "vllm.gpu_memory_utilization",
    "vllm.kv_cache_gib",
    "vllm.engine_args",
    "sampling.max_sequences",
    "train.token_budget",
    "dist.",
)
"""Beginnings of the settings that a resumed run may change. Another change makes another run."""


def check_resume(old_config: Config, new_config: Config) -> None:
    """Raise ValueError if the new configuration makes another run of the old one."""
    old_fields = _flatten(to_dict(old_config))
    new_fields = _flatten(to_dict(new_config))
    changes = [
        f"{name} from {old_fields.get(name)!r} to {new_fields.get(name)!r}"
        for name in old_fields | new_fields
        if old_fields.get(name) != new_fields.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if changes:
        raise ValueError(
            f"--resume continues the same run: expected only {', '.join(MAY_CHANGE)} to change, "
            f"got {'; '.join(changes)}"
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table with dotted names."""
    fields = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            fields |= _flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields
