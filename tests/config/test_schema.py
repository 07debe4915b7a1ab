"""Settings: types, ranges, cross-checks, and allowed values that srt_kernels has too."""

from dataclasses import fields, is_dataclass
from typing import get_args

import pytest

from srt_fast.config import Config, TrainConfig, from_dict, override, to_dict
from srt_fast.config.fields import field_docs
from srt_fast.config.overrides import flatten
from srt_fast.config.recipes import quickstart
from srt_fast.config.task import AnswerRule
from srt_fast.config.train import (
    SUPERVISED_OBJECTIVES,
    AdvantageKind,
    PolicyGradientName,
)
from srt_kernels.answers.extract import ANSWER_RULES
from srt_kernels.groups.group_advantage import KINDS
from srt_kernels.objective.objective import PRESETS

FILE_TASK = {
    "model.path": "unused",
    "task": {"kind": "jsonl", "name": "prompts.jsonl", "params": {}},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.lr": "fast"}, r"train\.lr: .*'fast'"),
        ({"train.lrr": 1}, r"train\.lrr: unknown field"),
        ({"feedback.kind": "majority"}, r"feedback: unknown field"),
        ({"train": {"lr": -1.0}}, r"train\.lr: expected greater than 0, got -1"),
        ({"train": 3}, r"train: expected a table"),
        ({"train.steps": 1.5}, r"train\.steps: .*1\.5"),
        ({"sampling.group_size": 1}, r"sampling\.group_size: .*2, got 1"),
        ({"train.objective": "ppo"}, r"train\.objective: expected 'grpo'.*got 'ppo'"),
        ({"train.objective_overrides": {"clip": 1}}, r"train\.objective_overrides: .*clip"),
        ({"train.minibatches": 65}, r"train\.minibatches: .*64.*got 65"),
        ({"reward.kind": "vote"}, r"reward\.kind: expected 'base_rate'.*got 'vote'"),
        (
            {"reward.kind": "pool", "model.dtype": "bfloat16"},
            r"model\.dtype: expected float32 with reward\.kind 'pool'",
        ),
        (
            {
                "train.optimizer": "adamw_8bit",
                "model.dtype": "bfloat16",
                "reward.kind": "majority",
            },
            r"train\.optimizer: .*master weights, with model\.dtype 'bfloat16', got 'adamw_8bit'",
        ),
        (FILE_TASK | {"reward.kind": "oracle"}, r"reward\.kind: 'oracle' needs gold answers"),
        (FILE_TASK | {"monitor.labels": "gold"}, r"monitor\.labels: 'gold' needs gold answers"),
        ({"warm_start.pass1_low": 0.9}, r"warm_start\.pass1_low"),
        ({"task.kind": "jsonl"}, r"task\.name"),
        ({"task.template": "no prompt"}, r"task\.template"),
        ({"task.kind": "reasoning_gym", "task.name": "chain_sum"}, r"model\.path"),
        (
            {"sampling.top_p": 0.9, "sampling.min_p": 0.1},
            r"sampling\.allow_truncation: expected True with top_p=0\.9, min_p=0\.1",
        ),
        ({"vllm.mode": "server"}, r"vllm\.urls: expected at least one server"),
        ({"vllm.urls": ["http://a:1"]}, r"vllm\.mode: expected 'server'"),
        (
            {"vllm.mode": "server", "vllm.urls": ["a:1"]},
            r"vllm\.urls: expected http://host:port, got a:1",
        ),
        ({"train.rounds": 2}, r"train\.rounds: expected 0 with train\.objective '\w+', got 2"),
        (
            {"train.rounds": 61, "train.objective": "dpo"},
            r"train\.rounds: expected at most train\.steps \(60\), got 61",
        ),
        (
            {"train.minibatches": 2, "train.objective": "sft"},
            r"train\.minibatches: expected 1 with train\.objective 'sft', got 2",
        ),
        (
            {"train.objective_overrides": {"kl_coef": 0.1}, "train.objective": "scpo"},
            r"train\.objective_overrides: expected \{\} with train\.objective 'scpo'",
        ),
        (
            {"vllm.one_step_off": True, "sampling.engine": "vllm", "train.objective": "dpo"},
            r"vllm\.one_step_off: expected False with train\.objective 'dpo'",
        ),
        (
            {"train.rounds": 1, "train.objective": "dpo", "reward.resample": 1},
            r"reward\.resample: expected 0 with train\.rounds, .* got 1",
        ),
        (
            {"train.rounds": 1, "train.objective": "dpo", "curriculum.repeat_hard": 0.5},
            r"curriculum\.repeat_hard: expected 0 with train\.rounds, .* got 0\.5",
        ),
        (
            {"curriculum.repeat_hard": 0.01},
            r"repeat_hard: expected 0, or at least 1 prompt of .*=64, got 0\.01 of them",
        ),
        (
            {"vllm.one_step_off": True, "sampling.engine": "hf"},
            r"vllm\.one_step_off: expected sampling\.engine='vllm'",
        ),
    ],
)
def test_bad_values_name_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        override(quickstart(), changes)


def test_python_constructors_check_too():
    with pytest.raises(
        ValueError, match=r"train\.lr: expected greater than 0, got -1; train\.foo: unknown field"
    ):
        TrainConfig(lr=-1, foo=1)  # pyright: ignore[reportCallIssue]


def test_override_takes_nested_and_dotted_names_and_copies():
    config = quickstart()
    changes = {"train": {"lr": 1e-5}, "train.seed": 3, "task.params": {"max_digits": 2}}
    changed = override(config, changes)
    assert changed.train.lr == 1e-5
    assert changed.train.seed == 3
    assert changed.task.params == {"max_digits": 2}
    assert changed.train.steps == config.train.steps
    assert config.train.seed == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reward.params.samples": 2, "reward.params.decay": 0.9},
            r"reward.params.samples: expected the table reward.params as a whole, .* params: \{s",
        ),
        ({"train.nothing.lr": 1}, "train.nothing: unknown field"),
        ({"log.mfu.rate": 1}, "log.mfu: expected a valid boolean"),
    ],
)
def test_changes_that_would_lose_something_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        override(quickstart(), changes)


def test_a_field_that_comes_twice_in_a_file_is_refused():
    with pytest.raises(ValueError, match="train.lr: expected one value, got it twice"):
        flatten({"train.lr": 1, "train": {"lr": 2}})


def test_allowed_values_are_those_of_the_kernels():
    """The schema spells them again: an import of srt_kernels brings torch."""
    assert get_args(PolicyGradientName) == tuple(PRESETS)
    assert get_args(AdvantageKind) == KINDS
    assert get_args(AnswerRule) == ANSWER_RULES


@pytest.mark.parametrize("name", (*PRESETS, *SUPERVISED_OBJECTIVES))
@pytest.mark.parametrize("one_step_off", [False, True])
def test_every_objective_is_valid_without_overrides(name, one_step_off):
    if name in SUPERVISED_OBJECTIVES:
        one_step_off = False
    changes = {"train.objective": name, "vllm.one_step_off": one_step_off}
    override(quickstart(), changes).objective()


def test_dr_grpo_takes_its_length_from_sampling():
    config = override(quickstart(), {"train.objective": "dr_grpo"})
    assert config.objective().max_length == config.sampling.max_new_tokens


def test_one_step_off_corrects_unless_overridden():
    config = override(quickstart(), {"vllm.one_step_off": True})
    assert config.objective().correction == "token_truncate"
    uncorrected = override(config, {"train.objective_overrides": {"correction": "none"}})
    assert uncorrected.objective().correction == "none"


def test_every_field_has_a_docstring():
    check_docstrings(Config())


def check_docstrings(section):
    docs = field_docs(type(section))
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            check_docstrings(value)
        else:
            assert docs[field.name][-1] in ".)>", field.name


def test_a_section_in_a_section_is_merged():
    config = override(quickstart(), {"model.lora.r": 4})
    config = override(config, {"model": {"lora": {"alpha": 8}}})
    assert (config.model.lora.r, config.model.lora.alpha) == (4, 8)
    with pytest.raises(ValueError, match="model.lora: expected a table of fields, got 4"):
        override(config, {"model.lora": 4})


def test_a_configuration_survives_json():
    config = override(quickstart(), {"train.betas": [0.9, 0.95], "vllm.mode": "colocate"})
    assert from_dict(to_dict(config)) == config
