"""policy_loss beside the losses of TRL's trainers, on the same rollouts padded.

TRL's GRPOTrainer is the real one, from a rollout_func to the loss. Only its model's forward pass is
replaced, by leaves: so gradients by log-probs and entropies can be compared. Left out are settings
that have no Objective: vespo, TRL's off-policy mask and its entropy quantile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from srt_kernels import Objective, PolicyLoss, policy_loss
from srt_kernels.testing import assert_close
from support.parity import (
    ADVANTAGES,
    CASES,
    CU_SEQLENS,
    KL,
    LENGTHS,
    MASK,
    REWARDS,
    grid,
    pad,
    preset,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and TRL warn about their own code

TRL_CASES = CASES | {
    # Liger refuses these two.
    "cispo, sequence ratio": ("cispo", preset("cispo", ratio="sequence", clip_high=1.01)),
    "sapo, sequence ratio": ("sapo", preset("sapo", ratio="sequence", tau_neg=3.0)),
    "grpo, token truncate": (
        "grpo",
        preset("grpo", correction="token_truncate", correction_cap=1.1),
    ),
    "dapo, token mask": ("dapo", preset("dapo", correction="token_mask", correction_cap=1.2)),
    "cispo, sequence mask": (
        "cispo",
        preset("cispo", correction="sequence_mask", correction_cap=1.5),
    ),
    "gspo, sequence truncate": (
        "grpo",
        preset("gspo", correction="sequence_truncate", correction_cap=1.5),
    ),
    # With other reductions TRL's bonus is still a mean over tokens. Ours weighs entropies as the
    # reduction weighs losses.
    "dapo, entropy": ("dapo", preset("dapo", entropy_coef=0.05)),
}
# fp64, and kl_coef times what the series of expm1 (token_loss.py) leaves out: up to 0.25**8 / 8!
TOLERANCE = 1e-10
BATCH = [{"prompt": "?"}] * 8


def normal(seed: int) -> Tensor:
    return torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(seed)).double()


LOGPROBS = -normal(24).abs()
OLD = LOGPROBS + 0.3 * normal(25)
REF = LOGPROBS + 0.3 * normal(26)
SAMPLER = (LOGPROBS + 0.3 * normal(27)).float().double()  # TRL stores a rollout_func's as fp32
ENTROPIES = normal(28).abs()


def rollout_func(prompts: list, trainer: Any) -> dict[str, list]:
    """The rollouts of support/parity.py with SAMPLER's log-probs. The empty one never ends."""
    end = trainer.eos_token_ids[0]
    completions = [[5] * (length - 1) + [end] if length else [5] * 4 for length in LENGTHS]
    logprobs = [part.tolist() or [-1.0] * 4 for part in SAMPLER.split(LENGTHS)]
    return {
        "prompt_ids": [[5]] * len(prompts),
        "completion_ids": completions,
        "logprobs": logprobs,
    }


@pytest.fixture
def make_trainer(tiny_model, tmp_path) -> Callable:
    """A function of settings: TRL's trainer, as train() would leave it before a loss."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset  # comes with TRL

    def make(kind: str = "GRPO", **settings: Any) -> Any:
        args = getattr(trl, f"{kind}Config")(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            num_generations=4,
            generation_batch_size=8,
            mask_truncated_completions=True,
            **settings,
        )
        data = Dataset.from_dict({"prompt": ["?"]})
        options = {"rollout_func": rollout_func} if kind == "GRPO" else {}
        trainer_type = getattr(trl, f"{kind}Trainer")
        trainer = trainer_type(tiny_model, lambda **_: REWARDS, args, data, **options)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        return trainer

    return make


def settings_of(loss_type: str, objective: Objective) -> dict[str, Any]:
    """GRPOConfig's names for an objective."""
    settings = dict(
        loss_type=loss_type,
        importance_sampling_level="sequence" if objective.ratio == "sequence" else "token",
        epsilon=objective.clip_low,
        epsilon_high=objective.clip_high,
        delta=objective.delta,
        max_completion_length=objective.max_length or 16,
        sapo_temperature_pos=objective.tau_pos,
        sapo_temperature_neg=objective.tau_neg,
        beta=objective.kl_coef,
        use_bias_correction_kl=objective.kl_bias_correction,
        entropy_coef=objective.entropy_coef,
    )
    if objective.correction != "none":
        settings["vllm_importance_sampling_mode"] = objective.correction
        settings["vllm_importance_sampling_clip_max"] = objective.correction_cap
    return settings


def replace_forward_pass(trainer: Any, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [B, T] that take the place of the model's forward pass."""
    logprobs = pad(LOGPROBS, -1.0).requires_grad_()
    entropies = pad(ENTROPIES, 7.0).requires_grad_()

    def forward(model: Any, *_: Any, compute_entropy: bool = False, **__: Any) -> tuple:
        if compute_entropy:  # only the loss asks for entropies
            return logprobs[rows], entropies[rows], None
        if model is trainer.ref_model:
            return pad(REF, -3.0), None, None
        return pad(OLD, -2.0), None, None

    trainer._get_per_token_logps_and_entropies = forward
    return logprobs, entropies


def our_loss(
    objective: Objective,
    advantages: Tensor,
    *,
    old: Tensor | None = OLD,
    first: int = 0,
    last: int = 8,
    normalizer: float | None = None,
) -> tuple[PolicyLoss, list[Tensor]]:
    """policy_loss of the rollouts from first to last, and its gradients padded."""
    part = slice(CU_SEQLENS[first], CU_SEQLENS[last])
    logprobs = LOGPROBS.clone().requires_grad_()
    entropies = ENTROPIES.clone().requires_grad_()
    result = policy_loss(
        logprobs[part],
        advantages,
        CU_SEQLENS[first : last + 1] - CU_SEQLENS[first],
        objective,
        old_logprobs=None if old is None else old[part],
        ref_logprobs=REF[part],
        sampler_logprobs=SAMPLER[part],
        entropies=entropies[part],
        normalizer=normalizer,
    )
    grads = torch.autograd.grad(result.loss, [logprobs, entropies], materialize_grads=True)
    return result, [pad(grad, 0.0) for grad in grads]


def check(
    loss: Tensor, leaves: tuple[Tensor, Tensor], ours: tuple[PolicyLoss, list[Tensor]]
) -> None:
    """TRL's loss, and its gradients by `leaves`, are ours."""
    result, expected = ours
    assert_close("loss", loss.detach(), result.loss.detach(), atol=TOLERANCE)
    actual = torch.autograd.grad(loss, leaves, materialize_grads=True)
    names = ("dlogprobs", "dentropies")
    for name, grad, expected_grad in zip(names, actual, expected, strict=True):
        assert_close(name, grad, expected_grad, atol=TOLERANCE)


@pytest.mark.parametrize("case, kl", grid(TRL_CASES))
def test_grpo(case, kl, make_trainer):
    loss_type, objective = TRL_CASES[case]
    objective = replace(objective, **KL[kl])
    trainer = make_trainer(num_iterations=2, **settings_of(loss_type, objective))
    if objective.correction != "none":  # GRPOConfig's use_vllm would start vLLM
        trainer.use_vllm = True
        trainer._last_loaded_step = 0
    leaves = replace_forward_pass(trainer)
    inputs = trainer._generate_and_score_completions(BATCH)
    assert torch.equal(inputs["completion_mask"].bool(), MASK)
    result, grads = our_loss(objective, inputs["advantages"])
    check(trainer._compute_loss(trainer.model, inputs), leaves, (result, grads))
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    check_metrics(metrics, objective, result)


def check_metrics(metrics: dict[str, float], objective: Objective, result: PolicyLoss) -> None:
    """TRL's metrics are ours, where both mean the same.

    For sequence ratios TRL takes means over completions. It does not count delta as clipping, and
    cispo's cap only for positive advantages.
    """
    if objective.kl_coef > 0:
        assert metrics["kl"] == pytest.approx(result.kl.item(), rel=1e-6)
    if objective.ratio == "token" and objective.correction.startswith("token"):
        mean = metrics["sampling/importance_sampling_ratio/mean"]
        assert mean == pytest.approx(result.correction.item(), rel=1e-6)
    is_token_clip = objective.surrogate == "clip" and objective.ratio == "token"
    if is_token_clip and objective.delta is None:
        assert metrics["clip_ratio/low_mean"] > 0
        assert metrics["clip_ratio/high_mean"] > 0
        clip_fraction = result.clip_fraction.item()
        assert metrics["clip_ratio/region_mean"] == pytest.approx(clip_fraction, rel=1e-6)


@pytest.mark.parametrize(
    "loss_type, objective",
    [
        # The ratio is 1 and still has a gradient.
        ("grpo", preset("grpo", kl_coef=0.04, kl_bias_correction=True)),
        ("grpo", preset("gspo")),
        ("cispo", preset("reinforce", clip_high=5.0)),
        ("sapo", preset("sapo", tau_neg=3.0)),
    ],
)
def test_grpo_on_policy(loss_type, objective, make_trainer):
    trainer = make_trainer(num_iterations=1, **settings_of(loss_type, objective))
    leaves = replace_forward_pass(trainer)
    inputs = trainer._generate_and_score_completions(BATCH)
    assert "old_per_token_logps" not in inputs
    ours = our_loss(objective, inputs["advantages"], old=None)
    check(trainer._compute_loss(trainer.model, inputs), leaves, ours)


@pytest.mark.parametrize(
    "loss_type, normalizers",
    [
        # Of the whole batch: 28 tokens, 8 completions.
        ("dapo", (28, 28)),
        ("grpo", (8, 8)),
        ("dr_grpo", (8, 8)),
        # The mean over each micro-batch's own tokens, and the mean of the two.
        ("bnpo", (2 * 9, 2 * 19)),
    ],
)
def test_grpo_micro_batches(loss_type, normalizers, make_trainer):
    """Gradient accumulation over two halves is a normalizer."""
    objective = preset(loss_type, max_length=16)
    trainer = make_trainer(
        num_iterations=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **settings_of(loss_type, objective),
    )
    replace_forward_pass(trainer)
    inputs = trainer._generate_and_score_completions(BATCH)
    for first, normalizer in zip((0, 4), normalizers, strict=True):
        last = first + 4
        rows = slice(first, last)
        half = {name: value[rows] if value.dim() else value for name, value in inputs.items()}
        leaves = replace_forward_pass(trainer, rows)
        loss = trainer._compute_loss(trainer.model, half)
        advantages = inputs["advantages"][rows]
        ours = our_loss(objective, advantages, first=first, last=last, normalizer=normalizer)
        check(loss, leaves, ours)


def test_rloo(make_trainer):
    """On policy the gradients are equal.

    TRL's loss is -A times the clipped ratio of a completion. Ours is -A logprob.
    """
    trainer = make_trainer("RLOO", beta=0.0)
    logprobs, _ = replace_forward_pass(trainer)
    inputs = dict(
        prompt_ids=MASK[:, :1],
        prompt_mask=MASK[:, :1],
        completion_ids=MASK,
        completion_mask=MASK.long(),
        old_logps=(logprobs.detach() * MASK).sum(1),
        advantages=ADVANTAGES,
    )
    loss = trainer._compute_loss(trainer.model, inputs)
    _, expected = our_loss(preset("rloo"), ADVANTAGES, old=None)
    actual = torch.autograd.grad(loss, logprobs)[0]
    assert_close("dlogprobs", actual, expected[0], atol=TOLERANCE)
