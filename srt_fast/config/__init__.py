"""A run's configuration.

One file for each subject holds its settings: model, task, sampling, reward, train, dist. schema has
the whole Config, and checks that its sections fit together. fields: how a section is checked.
overrides: changes and files. recipes: whole runs.
"""

from srt_fast.config.dist import DistConfig
from srt_fast.config.model import LoRAConfig, ModelConfig, WarmStartConfig
from srt_fast.config.overrides import from_dict, override, to_dict
from srt_fast.config.reward import (
    REWARD_KINDS,
    REWARDS_WITH_GOLD,
    REWARDS_WITH_TEACHER,
    CurriculumConfig,
    MonitorConfig,
    RewardConfig,
)
from srt_fast.config.sampling import SamplingConfig, VLLMConfig
from srt_fast.config.schema import Config
from srt_fast.config.task import TaskConfig
from srt_fast.config.train import CheckpointConfig, EvalConfig, LogConfig, TrainConfig

__all__ = [
    "REWARDS_WITH_GOLD",
    "REWARDS_WITH_TEACHER",
    "REWARD_KINDS",
    "CheckpointConfig",
    "Config",
    "CurriculumConfig",
    "DistConfig",
    "EvalConfig",
    "LoRAConfig",
    "LogConfig",
    "ModelConfig",
    "MonitorConfig",
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
