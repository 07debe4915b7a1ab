"""TRL's GRPOTrainer and SRTGRPOTrainer side by side: training runs, and single losses.

The optimizer is SGD: a parameter moves by lr times its gradient. fp32 rounding changes gradients by
less than 1e-6 of their size here, so it moves no parameter by 1e-5. Adam would divide a gradient
that is only rounding error by its own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from srt_fast.integrations.trl import SRTGRPOTrainer

PROMPTS = Dataset.from_dict({"prompt": ["1+" + "2" * n for n in (1, 5, 2, 8, 3, 7, 4, 6)]})
TIMING = ("runtime", "per_second", "step_time", "flos")
PARAMETER_TOLERANCE = 1e-5  # absolute
METRIC_TOLERANCE = 1e-4  # absolute
# A generation for four steps. Three of them are off policy, with ratios on both sides of every
# bound.
OFF_POLICY = dict(steps_per_generation=4, epsilon=0.03)
EAGER = {"attn_implementation": "eager"}

# Two groups of four, for a rollout_func.
COMPLETIONS = [
    [5, 6, 2],
    [7, 2],
    [8, 9, 10, 11, 2],
    [12, 13, 14, 15],
    [2],
    [16, 17, 2],
    [18] * 6,
    [19, 20, 2],
]
SAMPLER_LOGPROBS: list[list[float | None]] = [
    [-5.5 - 0.3 * (index % 3) + 0.4 * place for place in range(len(ids))]
    for index, ids in enumerate(COMPLETIONS)
]
SAMPLER_LOGPROBS[2][1] = None  # TRL has None where vLLM could not score a token
ROLLOUTS: dict[str, list] = {
    "prompt_ids": [[1, 5]] * 4 + [[1]] * 4,
    "completion_ids": COMPLETIONS,
    "logprobs": SAMPLER_LOGPROBS,
}

LossResult = tuple[Tensor, list[Tensor], dict[str, list[float]]]  # loss, gradients, metrics


def token_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """0 or 1 by the sum of the tokens. All four are equal in about one group of four."""
    return [float(sum(ids) % 3 == 0) for ids in completion_ids]


# ---- training runs ----


def train_both(make_trainer: Callable, **settings: Any) -> list[Any]:
    """TRL's trainer and ours. Each is trained right after it is made, which sets the seed."""
    trainers = []
    for trainer_type in (trl.GRPOTrainer, SRTGRPOTrainer):
        trainer = make_trainer(trainer_type, **settings)
        trainer.train()
        trainers.append(trainer)
    return trainers


def largest_difference(model: PreTrainedModel, other: PreTrainedModel) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max((first - second).abs().max().item() for first, second in pairs)


def check_same(theirs: Any, ours: Any, left_out: Sequence[str] = ()) -> None:
    """Parameters and all logged values of two trained trainers."""
    start = AutoModelForCausalLM.from_pretrained(theirs.model.config._name_or_path)
    assert largest_difference(theirs.model, start) > 1e-3
    check_same_as(theirs, ours, left_out)


def check_same_as(theirs: Any, ours: Any, left_out: Sequence[str] = ()) -> None:
    """check_same, without the check that training has moved the parameters."""
    assert largest_difference(theirs.model, ours.model) < PARAMETER_TOLERANCE
    for expected, actual in zip(theirs.state.log_history, ours.state.log_history, strict=True):
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            if not any(word in name for word in (*TIMING, *left_out)):
                assert actual[name] == pytest.approx(value, abs=METRIC_TOLERANCE), name


# ---- one loss ----


def make_both(
    make_trainer: Callable,
    model: PreTrainedModel | None = None,
    rollouts: dict[str, list] | None = None,
    **settings: Any,
) -> list[Any]:
    """Ours and TRL's trainer. rollouts: what their rollout_func returns, None: they sample."""
    options = {}
    if rollouts is not None:
        options = {"rollout_func": lambda prompts, trainer: dict(rollouts)}
    trainers = []
    for trainer_type in (SRTGRPOTrainer, trl.GRPOTrainer):
        models = () if model is None else (deepcopy(model),)
        trainers.append(make_trainer(trainer_type, *models, options=options, **settings))
    return trainers


def one_loss(trainer: Any) -> LossResult:
    """Of the first micro-batch."""
    torch.manual_seed(0)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    prompts = [{"prompt": prompt} for prompt in PROMPTS["prompt"][:2] for _ in range(4)]
    inputs = trainer._generate_and_score_completions(prompts)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    grads = [weight.grad for weight in trainer.model.parameters() if weight.requires_grad]
    return loss.detach(), grads, dict(trainer._metrics["train"])


def check_one_loss(
    ours: Any, theirs: Any, tolerance: float = 1e-5
) -> tuple[float, dict[str, list[float]]]:
    """Both trainers have the same loss, gradients and metrics.

    Returns TRL's largest gradient and its metrics.
    """
    our_loss, our_grads, our_metrics = one_loss(ours)
    loss, grads, metrics = one_loss(theirs)
    assert our_loss.item() == pytest.approx(loss.item(), abs=tolerance)
    largest = max(grad.abs().max().item() for grad in grads)
    for actual, expected in zip(our_grads, grads, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * largest)
    assert our_metrics.keys() == metrics.keys()
    for name, values in metrics.items():
        expected_values = pytest.approx(values, abs=10 * tolerance, nan_ok=True)
        assert our_metrics[name] == expected_values, name
    return largest, metrics
