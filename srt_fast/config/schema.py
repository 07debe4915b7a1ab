"""A run's whole configuration: frozen, keyword-only, checked when it is made.

pydantic checks types and ranges, also of a Config that is built in Python or read from a file. A
bad value is an error that names the field, before anything is loaded. Settings that do not fit
together are errors too. Recipes (recipes.py) are functions that return a whole Config. The command
line and YAML or TOML files override single fields of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from srt_fast.config.dist import DistConfig
from srt_fast.config.fields import check_no_password, section
from srt_fast.config.model import ModelConfig, WarmStartConfig
from srt_fast.config.reward import CurriculumConfig, MonitorConfig, RewardConfig
from srt_fast.config.sampling import SamplingConfig, VLLMConfig
from srt_fast.config.task import TaskConfig
from srt_fast.config.train import (
    SUPERVISED_OBJECTIVES,
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from srt_kernels import Objective


@section("")
class Config:
    """A whole run."""

    recipe: str = "quickstart"
    """Name of the recipe that this configuration started from."""
    run_dir: str | None = None
    """Folder to write to. None: runs/<recipe>-seed<seed>-<time>."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    warm_start: WarmStartConfig = Field(default_factory=WarmStartConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    vllm: VLLMConfig = Field(default_factory=VLLMConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig)
    monitor: MonitorConfig = Field(default_factory=MonitorConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluation: EvalConfig = Field(default_factory=EvalConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    dist: DistConfig = Field(default_factory=DistConfig)

    def __post_init__(self) -> None:
        check_no_password("", self)
        _check_model(self)
        _check_gold(self)
        _check_train(self)
        _check_rounds(self)

    def objective(self) -> Objective:
        """The loss that train.objective and train.objective_overrides describe.

        "dr_grpo" divides by sampling.max_new_tokens. vllm.one_step_off corrects by token_truncate.
        Overrides of these fields come first. "sft" is a mean over tokens. "dpo" and "scpo" are a
        mean over completions of the sum over their tokens.
        """
        # Imports torch, which takes seconds. `srt-fast --help` must not need it.
        from srt_kernels import Objective

        name = self.train.objective
        if name in SUPERVISED_OBJECTIVES:
            return Objective.preset("reinforce" if name == "sft" else "rloo")
        changes = dict(self.train.objective_overrides)
        if name == "dr_grpo":
            changes.setdefault("max_length", self.sampling.max_new_tokens)
        if self.vllm.one_step_off:
            changes.setdefault("correction", "token_truncate")
        return Objective.preset(name, **changes)


def _check_model(config: Config) -> None:
    if config.model.path == "quickstart" and config.task.kind != "arithmetic":
        raise ValueError(
            "model.path: the embedded model 'quickstart' only knows task.kind='arithmetic', "
            f"got {config.task.kind!r}; name a model folder or hub id"
        )
    # Adapters are float32 whatever the type of the weights.
    trains_narrow_weights = config.model.dtype != "float32" and not config.model.lora.r
    if trains_narrow_weights and config.reward.needs_teacher:
        raise ValueError(
            f"model.dtype: expected float32 with reward.kind {config.reward.kind!r}, whose teacher "
            f"moves by less than bfloat16 resolves, got {config.model.dtype}"
        )
    if trains_narrow_weights and config.train.optimizer == "adamw_8bit":
        raise ValueError(
            "train.optimizer: expected 'adamw' or 'adamw_fused', which have master weights, with "
            f"model.dtype {config.model.dtype!r}, got 'adamw_8bit'"
        )
    if config.vllm.one_step_off and config.sampling.engine == "hf":
        raise ValueError(
            "vllm.one_step_off: expected sampling.engine='vllm', which samples beside the trainer, "
            "got 'hf'"
        )


def _check_gold(config: Config) -> None:
    if config.task.has_gold_source:
        return
    if config.reward.needs_gold:
        raise ValueError(
            f"reward.kind: {config.reward.kind!r} needs gold answers, expected task.gold_column to "
            "name them, got none"
        )
    if config.monitor.labels == "gold":
        raise ValueError(
            "monitor.labels: 'gold' needs gold answers, expected task.gold_column to name them, "
            "got none"
        )


def _check_train(config: Config) -> None:
    repeat_hard = config.curriculum.repeat_hard
    if repeat_hard and int(repeat_hard * config.train.prompts_per_step) < 1:
        raise ValueError(
            "curriculum.repeat_hard: expected 0, or at least 1 prompt of train.prompts_per_step="
            f"{config.train.prompts_per_step}, got {repeat_hard:g} of them"
        )
    # Without overrides every objective is valid (tests/config/test_schema.py), so torch is not
    # imported.
    if config.train.objective_overrides:
        try:
            config.objective()
        except ValueError as error:
            raise ValueError(f"train.objective_overrides: {error}") from None
    if config.train.minibatches > config.train.prompts_per_step:
        raise ValueError(
            "train.minibatches: expected at most train.prompts_per_step "
            f"({config.train.prompts_per_step}), got {config.train.minibatches}"
        )


def _check_rounds(config: Config) -> None:
    train = config.train
    if train.objective not in SUPERVISED_OBJECTIVES:
        if train.rounds:
            raise ValueError(
                f"train.rounds: expected 0 with train.objective {train.objective!r}, got "
                f"{train.rounds}; rounds are of {', '.join(SUPERVISED_OBJECTIVES)}"
            )
        return
    for name, value, expected in (
        ("train.minibatches", train.minibatches, 1),
        ("train.objective_overrides", train.objective_overrides, {}),
        ("train.reward_kl_coef", train.reward_kl_coef, 0.0),
        ("vllm.one_step_off", config.vllm.one_step_off, False),
    ):
        if value != expected:
            raise ValueError(
                f"{name}: expected {expected} with train.objective {train.objective!r}, got {value}"
            )
    if train.rounds > train.steps:
        raise ValueError(
            f"train.rounds: expected at most train.steps ({train.steps}), got {train.rounds}"
        )
    for name, value in (
        ("reward.resample", config.reward.resample),
        ("curriculum.repeat_hard", config.curriculum.repeat_hard),
    ):
        if train.rounds and value:
            raise ValueError(
                f"{name}: expected 0 with train.rounds, whose prompts are sampled ahead, got "
                f"{value}"
            )
