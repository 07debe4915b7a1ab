"""The training pass of a step: advantages, packing, the fused loss and the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from srt_fast.config import Config
from srt_fast.model.logprobs import head_inputs, rollout_logprobs
from srt_fast.model.packing import active_rollouts, count_tokens, pack
from srt_fast.model.policy import Policy
from srt_fast.optimizer import clip_gradients, make_optimizer
from srt_fast.run.step_metrics import StepTotals
from srt_fast.types import MicroBatch, Reward, Rollouts
from srt_kernels import PolicyLoss, group_advantage, linear_logprob, linear_policy_loss
from srt_kernels.core.segments import segment_reduce


class Learner:
    """Policy, reference model, optimizer and learning-rate schedule.

    A step calls `pack`, then `loss` for each micro-batch and `step` for each mini-batch, then
    `end_step`. `check()` is called between micro-batches while the step can still be undone, that
    is before its first update. It may raise (a signal arrived).
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        reference: Policy | None,
        check: Callable[[], None],
    ) -> None:
        train = config.train
        self._config = config
        self._objective = config.objective()
        self._check = check
        self._policy = policy
        self._reference = reference
        self._world = policy.world
        self.optimizer = make_optimizer(policy.model.parameters(), train)
        is_constant = train.lr_schedule == "constant"
        schedule = "constant_with_warmup" if is_constant else train.lr_schedule
        self._scheduler: Any = get_scheduler(
            schedule, self.optimizer, train.warmup_steps, train.steps
        )
        self._totals = StepTotals()
        self._step_values: dict[str, float] = {}

    # ---- the stations of a step ----

    def pack(self, rollouts: Rollouts, reward: Reward) -> list[list[MicroBatch]]:
        """Mini-batches of micro-batches. Rollouts without a gradient are dropped."""
        train = self._config.train
        objective = self._objective
        all_rollouts = torch.arange(len(reward.rewards), device=reward.rewards.device)
        self._totals = StepTotals()
        self._step_values = {"lr": self.optimizer.param_groups[0]["lr"]}
        advantages = self._advantages(rollouts, reward, all_rollouts)
        active = active_rollouts(
            advantages,
            reward.keep,
            rollouts.cu_seqlens,
            every_row=objective.kl_coef > 0 or objective.entropy_coef != 0,
        )
        tokens_saved = count_tokens(rollouts, all_rollouts) - count_tokens(rollouts, active)
        self._step_values["tokens_saved"] = tokens_saved
        old = self._logprobs(self._policy, rollouts, active) if train.minibatches > 1 else None
        ref = self._logprobs(self._reference, rollouts, active) if objective.kl_coef else None
        bounds = _minibatch_bounds(reward.keep, rollouts, train.minibatches)
        rollout_bounds = rollouts.cu_groups[bounds].tolist()
        minibatches = []
        for first, last in zip(rollout_bounds[:-1], rollout_bounds[1:], strict=True):
            indices = active[(active >= first) & (active < last)]
            if len(indices) == 0:
                continue
            normalizer = self._normalizer(rollouts, reward.keep, first, last)
            minibatches.append(
                [
                    replace(
                        batch,
                        old_logprobs=None if old is None else old[batch.token_index],
                        ref_logprobs=None if ref is None else ref[batch.token_index],
                        normalizer=normalizer,
                    )
                    for batch in pack(
                        rollouts, advantages, indices, train.token_budget, self._world
                    )
                ]
            )
        self._world.check_digest(
            "rollouts, advantages and random state",
            lambda: (rollouts.tokens, advantages, active, torch.get_rng_state()),
        )
        return minibatches

    def loss(self, batch: MicroBatch) -> Tensor:
        """The policy loss of a micro-batch: a scalar, a part of the mini-batch's mean."""
        if not self._totals.updates:
            self._check()

        def forward() -> tuple[Tensor, PolicyLoss]:
            tensors, options = head_inputs(self._policy, batch, self._config.sampling.temperature)
            result = linear_policy_loss(
                *tensors,
                batch.advantages,
                batch.cu_seqlens,
                self._objective,
                old_logprobs=batch.old_logprobs,
                ref_logprobs=batch.ref_logprobs,
                sampler_logprobs=batch.sampler_logprobs,
                normalizer=batch.normalizer,
                **options,
            )
            return result.loss, result

        loss, result = self._policy.run(forward)
        self._totals.add(result, batch, self._objective)
        return loss

    def step(self) -> None:
        """One optimizer update. Raises ValueError for a gradient norm that is not finite."""
        self._totals.updates += 1
        self._totals.grad_norm += self._update()

    def end_step(self) -> dict[str, float]:
        """Advance the schedule. Returns the step's metrics."""
        with warnings.catch_warnings():
            # torch warns if the first steps had no update. The schedule counts those too.
            warnings.simplefilter("ignore")
            self._scheduler.step()
        return self._step_values | self._totals.over_ranks(self._world).metrics()

    # ---- other updates ----

    def supervised_step(self, rollouts: Rollouts) -> dict[str, float]:
        """One update on the cross-entropy of these completions, in nats a token."""
        count = len(rollouts.truncated)
        device = rollouts.tokens.device
        indices = torch.arange(count, device=device)
        zeros = torch.zeros(count, device=device)
        total_loss = 0.0
        budget = self._config.train.token_budget
        for batch in pack(rollouts, zeros, indices, budget, self._world):

            def forward(batch: MicroBatch = batch) -> Tensor:
                temperature = self._config.sampling.temperature
                tensors, options = head_inputs(self._policy, batch, temperature)
                logprobs, _ = linear_logprob(*tensors, **options)
                return -logprobs.sum() / len(rollouts.tokens)

            loss = self._policy.run(forward)
            loss.backward()
            total_loss += loss.item()
        self._update()
        total = self._world.sum(torch.tensor(total_loss, dtype=torch.float64, device=device))
        return {"supervised_loss": total.item(), "supervised": count}

    def scale_lr(self, factor: float) -> None:
        """From the next step on the learning rate is `factor` times the configured one."""
        scheduler = self._scheduler
        base_lr = self._config.train.lr * factor
        scheduler.base_lrs = [base_lr] * len(scheduler.base_lrs)
        for group, shape in zip(self.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = base_lr * shape(scheduler.last_epoch)

    def discard_gradients(self) -> None:
        """Drop the gradients of an unfinished step."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer's state, which is sharded like the weights."""
        return {"scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scheduler.load_state_dict(state["scheduler"])

    # ---- parts ----

    def _advantages(self, rollouts: Rollouts, reward: Reward, all_rollouts: Tensor) -> Tensor:
        """[R] fp32 advantages, with the KL in the reward and the reward function's weights."""
        train = self._config.train
        rewards = reward.rewards
        if train.reward_kl_coef:
            kl = self._sequence_kl(rollouts, all_rollouts)
            rewards = rewards - train.reward_kl_coef * kl
            self._step_values["kl"] = kl.mean().item()
        advantages = group_advantage(rewards, rollouts.cu_groups, kind=train.advantage)
        if reward.advantages is not None:
            # The reward function sets the advantages. A KL in the reward still counts, centred.
            penalty = group_advantage(rewards - reward.rewards, rollouts.cu_groups, kind="mean")
            advantages = reward.advantages + penalty
        if reward.weights is not None:
            advantages = advantages * reward.weights
        return advantages

    def _normalizer(self, rollouts: Rollouts, keep: Tensor, first: int, last: int) -> Tensor:
        """What the loss of a mini-batch is divided by: its tokens or rollouts that count."""
        counts = keep[first:last]
        if self._objective.reduction == "token":
            counts = counts * rollouts.cu_seqlens.diff()[first:last]
        return counts.sum()

    def _update(self) -> float:
        grad_clip = self._config.train.grad_clip
        norm = clip_gradients(self._policy.model, grad_clip, self._world)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _logprobs(self, policy: Policy | None, rollouts: Rollouts, indices: Tensor) -> Tensor:
        """[N] log-probs of these rollouts' tokens under a model. Other tokens have NaN."""
        assert policy is not None
        return rollout_logprobs(
            policy,
            rollouts,
            indices,
            temperature=self._config.sampling.temperature,
            token_budget=self._config.train.token_budget,
            check=self._check,
        )

    def _sequence_kl(self, rollouts: Rollouts, all_rollouts: Tensor) -> Tensor:
        """[R] k3 estimate of the KL to the starting model, summed over each completion.

        Source: joschu.net/blog/kl-approx.html.
        """
        reference_logprobs = self._logprobs(self._reference, rollouts, all_rollouts)
        log_ratio = reference_logprobs - self._logprobs(self._policy, rollouts, all_rollouts)
        k3 = log_ratio.exp() - 1 - log_ratio
        lengths = rollouts.cu_seqlens.diff()
        rollout = torch.repeat_interleave(all_rollouts, lengths, output_size=len(k3))
        return torch.zeros(len(all_rollouts), device=k3.device).index_add(0, rollout, k3)


def _minibatch_bounds(keep: Tensor, rollouts: Rollouts, minibatches: int) -> Tensor:
    """[minibatches + 1] prompts at which mini-batches begin.

    Mini-batches have equally many prompts with a rollout that trains.
    """
    kept = (segment_reduce(keep, "max", rollouts.cu_groups) > 0).nonzero()[:, 0]
    device = kept.device
    places = torch.linspace(0, len(kept), minibatches + 1, device=device).long()[1:-1]
    if len(kept):
        places = kept[places.clamp_max(len(kept) - 1)]
    ends = torch.tensor([0, len(rollouts.prompts)], device=device)
    return torch.cat([ends[:1], places, ends[1:]])
