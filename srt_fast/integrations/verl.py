r"""verl: policy losses, a label-free advantage and the fused log-prob, in verl's own registries.

Importing this module registers them. verl imports it in each of its processes if the variable below
names it. The other lines are verl's settings:

    export VERL_USE_EXTERNAL_MODULES=srt_fast.integrations.verl
    python -m verl.trainer.main_ppo ... \
        algorithm.adv_estimator=majority_grpo \
        reward.custom_reward_function.path=pkg://srt_fast.integrations.verl \
        reward.custom_reward_function.name=answer_score \
        actor_rollout_ref.actor.policy_loss.loss_mode=srt_vanilla \
        actor_rollout_ref.model.use_fused_kernels=True \
        actor_rollout_ref.model.fused_kernel_options.impl_backend=triton

- srt_<mode> replaces verl's loss <mode>, for the MODES that have an Objective (verl_losses).
- majority_<kind> is the vote of each uid's group, then group_advantage's <kind> (verl_vote).
- fused_forward (verl_forward) replaces the forward pass of the `triton` backend of
  use_fused_kernels, for models of text. Softcaps and scales of logits are the model's.
- linear_cross_entropy below replaces verl's. The same backend calls it for models of images, and so
  does Megatron. verl's `torch` and `liger` backends are left as they are.

Written for verl 0.9 (github.com/verl-project/verl, trainer/ppo/core_algos.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
import torch.distributed as dist
import verl.utils.kernel.linear_cross_entropy as verl_fused
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

from srt_fast.integrations.verl_forward import monkey_patch, patch_forward_with_backends
from srt_fast.integrations.verl_losses import (
    AGGREGATIONS,
    DEFAULT_AGGREGATIONS,
    MODES,
    masked_policy_loss,
    objective_of,
)
from srt_fast.integrations.verl_vote import answer_score, majority_advantage
from srt_kernels import linear_logprob
from srt_kernels.core.checks import expect
from srt_kernels.groups.group_advantage import AdvantageKind

__all__ = [
    "AGGREGATIONS",
    "MODES",
    "answer_score",
    "linear_cross_entropy",
    "majority_advantage",
    "masked_policy_loss",
    "objective_of",
]


def _verl_loss(mode: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """masked_policy_loss of a mode, with the signature and the default of verl's loss.

    functools.partial would make the arguments after loss_agg_mode keyword-only.
    """
    default = DEFAULT_AGGREGATIONS.get(mode, "token-mean")

    def loss(
        old_log_prob,
        log_prob,
        advantages,
        response_mask,
        loss_agg_mode=default,
        config=None,
        rollout_is_weights=None,
    ):
        return masked_policy_loss(
            mode,
            old_log_prob,
            log_prob,
            advantages,
            response_mask,
            loss_agg_mode,
            config,
            rollout_is_weights,
        )

    return loss


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """verl's linear_cross_entropy: log-probs and entropies of the labels, without the logits.

    Args:
        hidden: [..., H], any floating dtype. verl's own kernel needs CUDA and H % 128 == 0.
        weight: [V, H], any floating dtype.
        labels: [...] integer, N in all.
        temperature: what logits are divided by.
        reduction: of the log-probs: "none", "sum" or "mean".
        dist_process_group: rank r holds the rows r V to (r + 1) V of the head. The gradients by
            hidden add up over the ranks to the whole gradient, as with verl's kernel and as
            Megatron's reduce-scatter expects. Here each rank has 1/world of it.

    Returns:
        Log-probs [N] fp32 in nats, or their sum or mean, and entropies [N] fp32.

    Raises:
        ValueError: another reduction, and as linear_logprob.
    """
    reductions = ("none", "sum", "mean")
    expect(reduction in reductions, "reduction", "'none', 'sum' or 'mean'", repr(reduction))
    hidden = hidden.flatten(0, -2)
    if dist_process_group is not None:
        hidden = hidden.view_as(hidden)  # a tensor of its own, so that the hook is only for this
        if hidden.requires_grad:
            share = 1 / dist.get_world_size(dist_process_group)
            hidden.register_hook(partial(torch.mul, other=share))
    logprobs, entropies = linear_logprob(
        hidden, weight, labels.flatten().long(), temperature=temperature, group=dist_process_group
    )
    if reduction == "sum":
        return logprobs.sum(), entropies
    if reduction == "mean":
        return logprobs.mean(), entropies
    return logprobs, entropies


for _mode in MODES:
    register_policy_loss(f"srt_{_mode}")(_verl_loss(_mode))
for _kind in get_args(AdvantageKind):
    register_adv_est(f"majority_{_kind}")(partial(majority_advantage, _kind))
verl_fused.linear_cross_entropy = linear_cross_entropy
monkey_patch.patch_forward_with_backends = patch_forward_with_backends
