"""The training pass of a step: advantages, packing, the fused loss and the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import get_scheduler

from srt_fast.config import Config
from srt_fast.model.logprobs import head_inputs, rollout_logprobs
from srt_fast.model.packing import active_rollouts, count_tokens, pack
from srt_fast.model.policy import Policy
from srt_fast.run.step_metrics import StepTotals
from srt_fast.types import MicroBatch, Reward, Rollouts
from srt_kernels.core.segments import segment_reduce
from srt_kernels.groups.group_advantage import group_advantage
from srt_kernels.lm_head.linear_logprob import linear_logprob
from srt_kernels.lm_head.linear_policy_loss import PolicyLoss, linear_policy_loss


class Learner:
    """Policy, reference, optimizer and learning-rate schedule.

    `check()` is called between micro-batches as long as the step can still be undone; it may raise (a signal arrived).
    """

    def __init__(
        self, config: Config, policy: Policy, reference: Policy | None, check: Callable[[], None]
    ):
        train = config.train
        self._config, self._objective, self._check = config, config.objective(), check
        self._policy, self._reference = policy, reference
        self._optimizer = torch.optim.AdamW(
            policy.model.parameters(),
            lr=train.lr,
            betas=train.betas,
            weight_decay=train.weight_decay,
        )
        name = "constant_with_warmup" if train.lr_schedule == "constant" else train.lr_schedule
        self._scheduler = get_scheduler(name, self._optimizer, train.warmup_steps, train.steps)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def state_dict(self) -> dict:
        return {
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])

    def forget(self) -> None:
        """Drop the gradient of an unfinished step."""
        self._optimizer.zero_grad(set_to_none=True)

    def learn(self, rollouts: Rollouts, reward: Reward) -> dict:
        """One optimizer update per mini-batch of prompts; none where no rollout has a gradient. Returns metrics."""
        train, objective = self._config.train, self._objective
        rewards, everything = (
            reward.rewards,
            torch.arange(len(reward.rewards), device=reward.rewards.device),
        )
        values: dict = {"lr": self._optimizer.param_groups[0]["lr"]}
        if train.reward_kl_coef:
            kl = self._sequence_kl(rollouts, everything)
            rewards, values["kl"] = rewards - train.reward_kl_coef * kl, kl.mean().item()
        advantages = group_advantage(rewards, rollouts.cu_groups, kind=train.advantage)
        if (
            reward.advantages is not None
        ):  # the design's own; a KL in the reward still counts, centred
            advantages = reward.advantages + group_advantage(
                rewards - reward.rewards, rollouts.cu_groups, kind="mean"
            )
        if reward.weights is not None:
            advantages = advantages * reward.weights
        every_row = objective.kl_coef > 0 or objective.entropy_coef != 0
        active = active_rollouts(advantages, reward.keep, rollouts.cu_seqlens, every_row=every_row)
        lengths = rollouts.cu_seqlens.diff()
        values["tokens_saved"] = count_tokens(rollouts, everything) - count_tokens(rollouts, active)
        old = self._logprobs(self._policy, rollouts, active) if train.minibatches > 1 else None
        ref = self._logprobs(self._reference, rollouts, active) if objective.kl_coef else None
        bounds = _even_bounds(reward, rollouts, train.minibatches)
        totals = StepTotals()
        for first, last in rollouts.cu_groups[bounds].unfold(0, 2, 1).tolist():
            part = active[(active >= first) & (active < last)]
            if len(part) == 0:
                continue
            counted = reward.keep[first:last]
            normalizer = (
                (lengths[first:last] * counted).sum()
                if objective.reduction == "token"
                else counted.sum()
            )
            for batch in pack(rollouts, advantages, part, train.token_budget):
                if not totals.updates:  # before the first update a step can still be undone
                    self._check()
                before = None if old is None else old[batch.token_index]
                totals.add(self._backward(batch, before, ref, normalizer), batch, before, objective)
            totals.updates += 1
            totals.grad_norm += self._update()
        with (
            warnings.catch_warnings()
        ):  # torch warns where the first steps had no update: the schedule counts those too
            warnings.simplefilter("ignore")
            self._scheduler.step()
        return values | totals.metrics()

    def supervise(self, rollouts: Rollouts) -> dict:
        """One optimizer update on the cross-entropy of these completions, in nats a token. Returns metrics."""
        everything, total = (
            torch.arange(len(rollouts.truncated), device=rollouts.tokens.device),
            0.0,
        )
        nothing = torch.zeros(len(everything), device=everything.device)
        for batch in pack(rollouts, nothing, everything, self._config.train.token_budget):
            tensors, options = head_inputs(self._policy, batch, self._config.sampling.temperature)
            loss = -linear_logprob(*tensors, **options)[0].sum() / len(rollouts.tokens)
            loss.backward()
            total += loss.item()
        self._update()
        return {"supervised_loss": total, "supervised": len(everything)}

    def scale_lr(self, factor: float) -> None:
        """From the next step on the learning rate is `factor` times what the configuration says."""
        scheduler = self._scheduler
        scheduler.base_lrs = [self._config.train.lr * factor] * len(scheduler.base_lrs)
        for group, base, shape in zip(
            self._optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * shape(scheduler.last_epoch)

    def _backward(
        self, batch: MicroBatch, old: Tensor | None, ref: Tensor | None, normalizer: Tensor
    ) -> PolicyLoss:
        tensors, options = head_inputs(self._policy, batch, self._config.sampling.temperature)
        result = linear_policy_loss(
            *tensors,
            batch.advantages,
            batch.cu_seqlens,
            self._objective,
            **options,
            sampler_logprobs=batch.sampler_logprobs,
            normalizer=normalizer,
            old_logprobs=old,
            ref_logprobs=None if ref is None else ref[batch.token_index],
        )
        result.loss.backward()
        return result

    def _update(self) -> float:
        parameters = self._policy.model.parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._config.train.grad_clip).item()
        if norm != norm or norm == float("inf"):
            raise ValueError(
                f"expected a finite gradient norm, got {norm}; the last checkpoint is unharmed"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _logprobs(self, policy: Policy, rollouts: Rollouts, indices: Tensor) -> Tensor:
        """[N] log-probs of these rollouts' tokens under a model; other tokens' are NaN."""
        return rollout_logprobs(
            policy,
            rollouts,
            indices,
            temperature=self._config.sampling.temperature,
            token_budget=self._config.train.token_budget,
            check=self._check,
        )

    def _sequence_kl(self, rollouts: Rollouts, everything: Tensor) -> Tensor:
        """[R] k3 estimate of the KL to the starting model, summed over each completion (joschu.net/blog/kl-approx.html)."""
        log_ratio = self._logprobs(self._reference, rollouts, everything) - self._logprobs(
            self._policy, rollouts, everything
        )
        k3 = log_ratio.exp() - 1 - log_ratio
        rollout = torch.repeat_interleave(
            everything, rollouts.cu_seqlens.diff(), output_size=len(k3)
        )
        return torch.zeros(len(everything), device=k3.device).index_add(0, rollout, k3)


def _even_bounds(reward: Reward, rollouts: Rollouts, minibatches: int) -> Tensor:
    """[minibatches + 1] prompts at which mini-batches begin, with equally many prompts each of which something is kept."""
    kept = (segment_reduce(reward.keep, "max", rollouts.cu_groups) > 0).nonzero()[:, 0]
    first = torch.linspace(0, len(kept), minibatches + 1, device=kept.device).long()[1:-1]
    ends = torch.tensor([0, len(rollouts.prompts)], device=kept.device)
    return torch.cat(
        [ends[:1], kept[first.clamp_max(max(len(kept) - 1, 0))] if len(kept) else first, ends[1:]]
    )
