r"""verl: policy losses, a label-free advantage and the fused log-prob, through verl's own registries.

Importing this module registers them. verl imports it in each of its processes where it is told to, and the rest are
verl's settings:

    export VERL_USE_EXTERNAL_MODULES=srt_fast.integrations.verl
    python -m verl.trainer.main_ppo ... \
        algorithm.adv_estimator=majority_grpo \
        reward.custom_reward_function.path=pkg://srt_fast.integrations.verl \
        reward.custom_reward_function.name=answer_score \
        actor_rollout_ref.actor.policy_loss.loss_mode=srt_vanilla \
        actor_rollout_ref.model.use_fused_kernels=True \
        actor_rollout_ref.model.fused_kernel_options.impl_backend=triton

srt_<mode>: policy_loss in place of verl's loss <mode>, for the MODES that an Objective says. majority_<kind>: the vote
of each uid group, then group_advantage's <kind>. verl's linear_cross_entropy, which only its `triton` backend of
use_fused_kernels calls, becomes the one below. Written for verl 0.9 (github.com/verl-project/verl, trainer/ppo/core_algos.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import verl.utils.kernel.linear_cross_entropy as fused
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

from srt_fast.integrations.padded import pack
from srt_kernels import Objective, group_advantage, linear_logprob, majority_vote, policy_loss
from srt_kernels.answers.canonical import answer_key, canonical_answer
from srt_kernels.answers.extract import read_answer
from srt_kernels.core.checks import expect
from srt_kernels.core.segments import segment_ids, segment_reduce
from srt_kernels.groups.group_advantage import KINDS

SCORES = 1 << 24  # integers below it are exact in fp32, which verl keeps scores in


# ---- policy losses ----


def _bounds(config: Any) -> tuple[float, float]:
    low, high = config.clip_ratio_low, config.clip_ratio_high
    return config.clip_ratio if low is None else low, config.clip_ratio if high is None else high


def _clip(config: Any) -> dict[str, Any]:
    low, high = _bounds(config)
    return {"clip_low": min(low, 1.0), "clip_high": high}  # ratios are positive


def _dual_clip(config: Any) -> dict[str, Any]:
    parts, delta = _clip(config), config.clip_ratio_c
    least = 1 + parts["clip_high"]
    expect(
        delta > least,
        "clip_ratio_c",
        f"more than 1 + clip_ratio_high = {least} with loss_mode srt_vanilla",
        delta,
    )
    return parts | {"delta": delta}


def _dro(config: Any) -> dict[str, Any]:
    beta = config.policy_loss.dro_beta
    expect(
        beta is not None and beta > 0,
        "policy_loss.dro_beta",
        "a number above 0 with loss_mode srt_dro",
        beta,
    )
    return REINFORCE | {"kl": "k2", "kl_coef": beta}  # to the old policy


# An actor's config -> fields of the Objective. cispo's bounded ratio has no gradient: it is a factor of the advantage.
REINFORCE = {"ratio": "none", "surrogate": "reinforce"}
MODES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "vanilla": _dual_clip,
    "gspo": _clip,
    "sapo": lambda config: {
        "surrogate": "sapo",
        "tau_pos": config.tau_pos,
        "tau_neg": config.tau_neg,
    },
    "cispo": lambda config: REINFORCE,
    "gpg": lambda config: REINFORCE,
    "dro": _dro,
}
DEFAULTS = {
    "gspo": "seq-mean-token-mean",
    "sapo": "seq-mean-token-mean",
}  # loss_agg_mode, where it is not token-mean
METRICS = {"gpg": (), "dro": ("actor/ppo_kl",)}  # that verl logs, where these are not all three
TOKENS, SUMS = {"reduction": "token"}, {"reduction": "fixed", "max_length": 1}
AGGREGATIONS = {
    "token-mean": TOKENS,
    "token-sum": TOKENS,
    "seq-mean-token-mean": {"reduction": "sequence"},
    "seq-mean-token-sum": SUMS,
    "seq-mean-token-sum-norm": SUMS,
}


def objective_of(mode: str, loss_agg_mode: str, config: Any) -> Objective:
    """The Objective that verl's loss `mode` is, with loss_agg_mode and an actor's config (verl's ActorConfig).

    Left out, as no Objective says them: dppo_tv, dppo_kl, clip_cov, kl_cov, geo_mean, and bypass_mode, which rejects
    samples. A mode or setting that is not covered raises a ValueError that names it.
    """
    expect(mode in MODES, "loss_mode", f"one of {', '.join(MODES)}", repr(mode))
    expect(
        loss_agg_mode in AGGREGATIONS,
        "loss_agg_mode",
        f"one of {', '.join(AGGREGATIONS)}",
        repr(loss_agg_mode),
    )
    expect(config is not None, "config", "verl's ActorConfig", None)
    return Objective(**MODES[mode](config), **AGGREGATIONS[loss_agg_mode])


def _normalizer(
    loss_agg_mode: str,
    mask: Tensor,
    *,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
) -> float | Tensor:
    """What the sums are divided by, from verl's global_batch_info: of the whole batch, or of this one where it is None."""
    if loss_agg_mode == "token-sum":
        return 1 / dp_size
    of_tokens = loss_agg_mode == "token-mean"
    name, count = (
        ("batch_num_tokens", batch_num_tokens)
        if of_tokens
        else ("global_batch_size", global_batch_size)
    )
    if count is None:
        expect(dp_size == 1, name, f"a number with dp_size {dp_size}", None)
        count = (mask if of_tokens else mask.any(1)).sum().clamp(min=1)
    if loss_agg_mode == "seq-mean-token-sum-norm":
        count = count * (mask.shape[1] if loss_scale_factor is None else loss_scale_factor)
    return count / dp_size


def _completion_means(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[N] -> [N] fp64: each token's completion's mean."""
    means = segment_reduce(values, "sum", cu_seqlens) / cu_seqlens.diff().clamp(min=1)
    return means[segment_ids(cu_seqlens, len(values))]


def _pack(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the tokens [N] in the flattened batch, and cu_seqlens."""
    index, cu_seqlens = pack(mask, aligned=True)
    if len(index) == len(
        mask
    ):  # policy_loss would take N advantages for one per rollout: an empty rollout more
        cu_seqlens = torch.cat([cu_seqlens, cu_seqlens[-1:]])
    return index, cu_seqlens


def _clipped(mode: str, ratio: Tensor, bounded: Tensor, advantages: Tensor) -> Tensor:
    """[N] bool, the tokens that verl counts; advantages without rollout weights, as a weight of 0 (IcePop) hides the sign."""
    if mode == "cispo":
        return ratio != bounded
    if mode == "sapo":
        return torch.zeros_like(ratio, dtype=torch.bool)
    return (advantages > 0) & (ratio > bounded) | (advantages < 0) & (ratio < bounded)


def _metrics(
    mode: str, log_ratio: Tensor, clipped: Tensor, beyond_delta: Tensor
) -> dict[str, float]:
    """What verl logs for a mode, by one host sync. All [N]; beyond_delta: 1 where the dual clip took the gradient."""
    sums = [values.sum(dtype=torch.float64) for values in (clipped, -log_ratio, beyond_delta)]
    means = (torch.stack(sums) / max(1, len(log_ratio))).tolist()
    known = dict(
        zip(("actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower"), means, strict=True)
    )
    return {name: known[name] for name in METRICS.get(mode, known)}


def masked_policy_loss(
    mode: str,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """verl's loss `mode` by srt_kernels.policy_loss: (loss, metrics) with verl's values, gradients and names.

    All tensors [B, T]; config is verl's ActorConfig with its global_batch_info. sapo always takes seq-mean-token-mean, as
    in verl. A loss without any token is 0, in verl nan. With a negative advantage verl's gspo has no gradient beyond a
    log-ratio of 10, ours beyond 20. Raises ValueError as objective_of, for a missing count of the global batch with
    dp_size above 1, and for dro with rollout_is_weights, which in verl weigh the penalty too.
    """
    loss_agg_mode = "seq-mean-token-mean" if mode == "sapo" else loss_agg_mode
    objective = objective_of(mode, loss_agg_mode, config)
    unweighted, mask = rollout_is_weights is None, response_mask.bool()
    expect(
        unweighted or mode != "dro", "rollout_is_weights", "None with loss_mode srt_dro", "a tensor"
    )
    index, cu_seqlens = _pack(mask)
    factors = (
        advantages if unweighted else advantages * rollout_is_weights
    )  # a loss is linear in them
    logprobs, old, advantages, factors = (
        t.flatten()[index] for t in (log_prob, old_log_prob, advantages, factors)
    )
    log_ratio = logprobs.detach() - old
    log_ratio = log_ratio if mode in ("gspo", "dro") else log_ratio.clamp(-20, 20)
    means = _completion_means(log_ratio, cu_seqlens) if mode == "gspo" else None
    ratio, (low, high) = (log_ratio if means is None else means).exp(), _bounds(config)
    bounded, beyond_delta = (
        ratio.clamp(1 - low, 1 + high),
        (ratio > (objective.delta or torch.inf)) & (advantages < 0),
    )
    out = policy_loss(
        logprobs,
        factors * bounded if mode == "cispo" else factors,
        cu_seqlens,
        objective,
        old_logprobs=old
        if means is None
        else logprobs.detach() - means,  # GSPO-token (arXiv 2507.18071, 4.3)
        ref_logprobs=old if mode == "dro" else None,
        normalizer=_normalizer(loss_agg_mode, mask, **config.global_batch_info),
    )
    return out.loss, _metrics(
        mode, log_ratio, _clipped(mode, ratio, bounded, advantages), beyond_delta
    )


def _with_default(mode: str, default: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """masked_policy_loss with the signature of verl's loss `mode`; a partial would make the rest keyword-only."""

    def loss(
        old_log_prob,
        log_prob,
        advantages,
        response_mask,
        loss_agg_mode=default,
        config=None,
        rollout_is_weights=None,
    ):
        batch = old_log_prob, log_prob, advantages, response_mask
        return masked_policy_loss(mode, *batch, loss_agg_mode, config, rollout_is_weights)

    return loss


for _mode in MODES:
    register_policy_loss(f"srt_{_mode}")(_with_default(_mode, DEFAULTS.get(_mode, "token-mean")))


# ---- the vote ----


def answer_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict | None = None,
    *,
    rule: str = "boxed",
) -> dict[str, Any]:
    """A reward function for verl whose score is no reward but the answer's name, for the majority_ advantages to vote on.

    verl's advantage estimators see scores and uids, not texts. score: an integer from 1 to 2^24 - 1 made of the answer's
    64-bit key, the same for equal answers, or 0 for none; two different answers share one in 6 of 10^8 cases. verl's
    critic/score metrics mean nothing then, and a KL in the reward (use_kl_in_reward) is refused by the vote. pred: the
    canonical answer; acc: whether it is the gold one, None where there is none. Both are only logged: verl makes held-out
    acc/mean@n and acc/maj@n of them. rule (custom_reward_function.reward_kwargs.rule): see srt_kernels.answer_key.read_answer.
    """
    answer = read_answer(solution_str, rule)
    key = answer_key(answer)
    gold = None if ground_truth is None else answer_key(str(ground_truth))
    return {
        "score": float(1 + key % (SCORES - 1)) if key else 0.0,
        "pred": (canonical_answer(answer) or "") if answer else "",
        "acc": None if gold is None else float(key == gold != 0),
    }


def _keys(token_level_rewards: Tensor) -> Tensor:
    scores = token_level_rewards.sum(-1)
    keys = scores.long()
    good = (keys == scores) & (keys >= 0) & (keys < SCORES)
    expected = "the scores of answer_score, with use_kl_in_reward off"
    expect(
        bool(good.all()),
        "token_level_rewards",
        expected,
        f"{scores[~good][:1].tolist()}, no integer in [0, 2^24)",
    )
    return keys


def _by_group(index: Iterable[Hashable], device: torch.device) -> tuple[Tensor, Tensor]:
    """uids [B] -> the rows with those of each uid together [B], and cu_groups [P+1]."""
    number: dict[Hashable, int] = {}
    group = torch.tensor(
        [number.setdefault(uid, len(number)) for uid in index], dtype=torch.int64, device=device
    )
    sizes = torch.bincount(group, minlength=len(number))
    return torch.argsort(group, stable=True), torch.nn.functional.pad(sizes.cumsum(0), (1, 0))


def majority_advantage(
    kind: str,
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Iterable[Hashable],
    config: Any = None,
) -> tuple[Tensor, Tensor]:
    """Advantages of agreeing with the majority of the same uid, without labels: (advantages, returns), both the same.

    token_level_rewards [B, T] fp32, whose sums are the scores of answer_score; response_mask [B, T]; index [B] uids, in any
    order and groups of any size; config is not read (norm_adv_by_std_in_grpo: that is kind "grpo" or "mean"). Returns [B, T]
    fp32, 0 outside the mask. A tie goes to the earlier row; rows without an answer earn 0. See majority_vote and
    group_advantage. Raises ValueError for scores that are not answer_score's.
    """
    order, cu_groups = _by_group(index, token_level_rewards.device)
    vote = majority_vote(_keys(token_level_rewards)[order], cu_groups)
    advantages = torch.empty_like(vote.rewards)
    advantages[order] = group_advantage(vote.rewards, cu_groups, kind=kind)
    advantages = advantages[:, None] * response_mask
    return advantages, advantages


for _kind in KINDS:
    register_adv_est(f"majority_{_kind}")(partial(majority_advantage, _kind))


# ---- the fused log-prob ----


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """verl's linear_cross_entropy by srt_kernels.linear_logprob: log-probs and entropies of the labels, never the logits.

    hidden [..., H] and weight [V, H] of any floating type (verl's kernel wants CUDA and H % 128 == 0), labels [...] integer.
    Returns log-probs [N] fp32 nats, or their sum or mean (reduction), and entropies [N] fp32; N = labels.numel().

    dist_process_group: rank r holds rows r V to (r + 1) V of the head. As with verl's kernel the gradients by hidden add up
    over the ranks to the whole one, which is what Megatron's reduce-scatter expects; here each is 1/world of it.
    Raises ValueError for another reduction, and as linear_logprob.
    """
    expect(
        reduction in ("none", "sum", "mean"),
        "reduction",
        "'none', 'sum' or 'mean'",
        repr(reduction),
    )
    hidden = hidden.flatten(0, -2)
    if dist_process_group is not None:
        hidden = hidden.view_as(hidden)  # the hook is for this use of it only
        if hidden.requires_grad:
            hidden.register_hook(
                partial(torch.mul, other=1 / dist.get_world_size(dist_process_group))
            )
    logprobs, entropies = linear_logprob(
        hidden, weight, labels.flatten().long(), temperature=temperature, group=dist_process_group
    )
    return logprobs if reduction == "none" else getattr(logprobs, reduction)(), entropies


fused.linear_cross_entropy = linear_cross_entropy
