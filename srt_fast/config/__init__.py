"""A run's configuration. schema: the fields. fields: how they are checked. overrides: changes, files. recipes: whole runs."""

from srt_fast.config.overrides import from_dict, override, to_dict
from srt_fast.config.schema import (
    REWARD_KINDS,
    CheckpointConfig,
    Config,
    CurriculumConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    MonitorConfig,
    RewardConfig,
    SamplingConfig,
    TaskConfig,
    TrainConfig,
    VLLMConfig,
    WarmStartConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "CurriculumConfig",
    "EvalConfig",
    "LogConfig",
    "ModelConfig",
    "MonitorConfig",
    "REWARD_KINDS",
    "RewardConfig",
    "SamplingConfig",
    "TaskConfig",
    "TrainConfig",
    "VLLMConfig",
    "WarmStartConfig",
    "from_dict",
    "override",
    "to_dict",
]
