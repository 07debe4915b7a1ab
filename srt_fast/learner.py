"""The training pass of a step: advantages, packing, the fused loss and the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import compress, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from srt_fast.config import Config
from srt_fast.config.train import PAIR_OBJECTIVES, SUPERVISED_OBJECTIVES
from srt_fast.model.logprobs import head_inputs, rollout_logprobs
from srt_fast.model.policy import Policy
from srt_fast.model.routers import (
    check_routers,
    experts_per_token,
    load_balancing_loss,
    record_router_logits,
    token_copies,
)
from srt_fast.optimizer import clip_gradients, make_optimizer
from srt_fast.packing.micro_batches import count_tokens, pack_plan, select_rollouts
from srt_fast.packing.pieces import Piece, count_planned_tokens, plan_micro_batches
from srt_fast.rewards.preferences import (
    PairTargets,
    choose_completions,
    choose_pairs,
    pair_targets,
)
from srt_fast.run.step_metrics import Figures, StepTotals
from srt_fast.transfer import fetch, send
from srt_fast.types import Layout, MicroBatch, Reward, Rollouts
from srt_fast.utilization.meter import StepMeter
from srt_kernels import PolicyLoss, group_advantage, linear_logprob, linear_policy_loss
from srt_kernels.core.segments import segment_ids


class Learner:
    """Policy, reference model, optimizer and learning-rate schedule.

    A step calls `pack`, then `loss` for each micro-batch and `step` for each mini-batch, then
    `end_step`. `check()` is called between micro-batches while the step can still be undone, that
    is before its first update. It may raise (a signal arrived).

    meter: gets the passes that are made here. None: nothing is measured.

    Raises ValueError for train.router_aux_loss_coef with a model whose routers give no logits.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        reference: Policy | None,
        check: Callable[[], None],
        meter: StepMeter | None = None,
    ) -> None:
        train = config.train
        self._config = config
        self._objective = config.objective()
        self._is_supervised = train.objective in SUPERVISED_OBJECTIVES
        self._has_pairs = train.objective in PAIR_OBJECTIVES
        # Supervised objectives are of the model itself, whatever the sampler's temperature.
        self._temperature = 1.0 if self._is_supervised else config.sampling.temperature
        self._check = check
        self._meter = meter or StepMeter()
        self._policy = policy
        self._reference = reference
        self._world = policy.world
        self._router_coef = train.router_aux_loss_coef
        if self._router_coef:
            check_routers(policy, "train.router_aux_loss_coef")
        self.optimizer = make_optimizer(policy.model.parameters(), train)
        is_constant = train.lr_schedule == "constant"
        schedule = "constant_with_warmup" if is_constant else train.lr_schedule
        self._scheduler: Any = get_scheduler(
            schedule, self.optimizer, train.warmup_steps, train.steps
        )
        self._totals = StepTotals(policy.device)
        self._step_values: Figures = {}

    # ---- the stations of a step ----

    def pack(self, rollouts: Rollouts, reward: Reward) -> list[list[MicroBatch]]:
        """Mini-batches of micro-batches. Rollouts without a gradient are dropped.

        One host sync, for the rollouts that have a gradient.
        """
        train = self._config.train
        objective = self._objective
        self._totals = StepTotals(reward.rewards.device)
        self._step_values = {"lr": self.optimizer.param_groups[0]["lr"]}
        if self._is_supervised:
            advantages, reward = self._supervised_targets(rollouts, reward)
        else:
            advantages = self._advantages(rollouts, reward)
        weights = (objective.kl_coef, objective.entropy_coef, self._router_coef)
        every_row = any(weight != 0 for weight in weights)
        selection = select_rollouts(rollouts, advantages, reward.keep, every_row=every_row)
        active = selection.active
        all_tokens = count_tokens(rollouts, range(len(rollouts.truncated)))
        active_tokens = count_tokens(rollouts, active)
        packed_tokens = 0
        old = self._logprobs(self._policy, rollouts, active) if train.minibatches > 1 else None
        ref = self._logprobs(self._reference, rollouts, active) if objective.kl_coef else None
        self._meter.count_training(rollouts, active)
        minibatches = []
        for part in _minibatch_slices(selection.kept, rollouts.layout, train.minibatches):
            indices = [index for index in active if part.start <= index < part.stop]
            if not indices:
                continue
            normalizer = self._normalizer(rollouts.layout.lengths[part], selection.kept[part])
            minibatch_tokens = count_tokens(rollouts, indices)
            plan = self._plan(rollouts, indices)
            packed_tokens += count_planned_tokens(plan)
            minibatches.append(
                [
                    replace(
                        batch,
                        old_logprobs=None if old is None else old[batch.token_index],
                        ref_logprobs=None if ref is None else ref[batch.token_index],
                        normalizer=normalizer,
                        minibatch_tokens=minibatch_tokens,
                    )
                    for batch in pack_plan(rollouts, advantages, plan[self._world.rank])
                ]
            )
        self._step_values["tokens_saved"] = all_tokens - active_tokens
        self._step_values["tokens_shared"] = active_tokens - packed_tokens
        self._world.check_digest(
            "rollouts, advantages and random state",
            lambda: (rollouts.tokens, advantages, active, torch.get_rng_state()),
        )
        return minibatches

    def loss(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch: a scalar, a part of the mini-batch's mean."""
        if not self._totals.updates:
            self._check()

        coef = self._router_coef

        def forward() -> tuple[Tensor, PolicyLoss, Tensor | None]:
            with record_router_logits(self._policy.model, enabled=coef > 0) as router_logits:
                tensors, options = head_inputs(self._policy, batch, self._temperature)
            result = linear_policy_loss(
                *tensors,
                batch.advantages,
                batch.cu_seqlens,
                self._objective,
                old_logprobs=batch.old_logprobs,
                ref_logprobs=batch.ref_logprobs,
                sampler_logprobs=batch.sampler_logprobs,
                normalizer=batch.normalizer,
                all_rows=not self._may_mask(batch),
                **options,
            )
            if not coef:
                return result.loss, result, None
            router_loss = self._router_loss(batch, router_logits)
            return result.loss + coef * router_loss, result, router_loss

        loss, result, router_loss = self._policy.run(forward)
        self._totals.add(result, batch, self._objective, router_loss)
        return loss

    def step(self, also: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One optimizer update. Returns the tensors `also` in host memory, by their names.

        One host sync reads them, the norm of the gradient and the step's sums, before the weights
        change. Raises ValueError for a norm that is not finite.
        """
        self._totals.updates += 1
        values = [name for name, value in self._step_values.items() if isinstance(value, Tensor)]
        tensors = [*self._totals.tensors(self._world), *map(self._step_values.get, values)]
        norm, (sums, mismatch, *read) = self._update([*tensors, *also.values()])
        self._totals.grad_norm += norm
        self._totals.on_host = (sums, mismatch)
        for name in values:
            self._step_values[name] = read.pop(0).item()
        return dict(zip(also, read, strict=True))

    def end_step(self) -> Figures:
        """Advance the schedule. Returns the step's metrics."""
        with warnings.catch_warnings():
            # torch warns if the first steps had no update. The schedule counts those too.
            warnings.simplefilter("ignore")
            self._scheduler.step()
        values = self._totals.metrics()
        if self._is_supervised:
            values.pop("train_mismatch_max", None)  # the log-probs are not the sampler's
        return values | self._step_values

    # ---- other updates ----

    def set_reference(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts, with the log-probs of the present policy in place of the sampler's.

        It is the reference of their preference pairs. Without pairs nothing is computed.
        """
        if not self._has_pairs:
            return rollouts
        logprobs = self._logprobs(self._policy, rollouts, range(len(rollouts.truncated)))
        return replace(rollouts, logprobs=logprobs)

    def supervised_step(self, rollouts: Rollouts) -> Figures:
        """One update on the cross-entropy of these completions, in nats a token."""
        count = len(rollouts.truncated)
        device = rollouts.tokens.device
        zeros = torch.zeros(count, device=device)
        total_loss = torch.zeros((), dtype=torch.float64, device=device)
        self._meter.count_training(rollouts, range(count))
        plan = self._plan(rollouts, range(count))
        for batch in pack_plan(rollouts, zeros, plan[self._world.rank]):

            def forward(batch: MicroBatch = batch) -> Tensor:
                temperature = self._config.sampling.temperature
                tensors, options = head_inputs(self._policy, batch, temperature)
                logprobs, _ = linear_logprob(*tensors, **options)
                return -logprobs.sum() / len(rollouts.tokens)

            loss = self._policy.run(forward)
            loss.backward()
            total_loss += loss.detach()
        _, [loss] = self._update([self._world.sum(total_loss)])
        return {"supervised_loss": loss.item(), "supervised": count}

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

    def _advantages(self, rollouts: Rollouts, reward: Reward) -> Tensor:
        """[R] fp32 advantages, with the KL in the reward and the reward function's weights."""
        train = self._config.train
        rewards = reward.rewards
        if train.reward_kl_coef:
            kl = self._sequence_kl(rollouts)
            rewards = rewards - train.reward_kl_coef * kl
            self._step_values["kl"] = kl.mean()
        cu_groups = rollouts.cu_groups if reward.cu_groups is None else reward.cu_groups
        advantages = group_advantage(rewards, cu_groups, kind=train.advantage)
        if reward.advantages is not None:
            # The reward function sets the advantages. A KL in the reward still counts, centred.
            penalty = group_advantage(rewards - reward.rewards, cu_groups, kind="mean")
            advantages = reward.advantages + penalty
        if reward.weights is not None:
            advantages = advantages * reward.weights
        return advantages

    def _supervised_targets(self, rollouts: Rollouts, reward: Reward) -> tuple[Tensor, Reward]:
        """The slopes [R] fp32 of a supervised objective, and the reward with what trains kept.

        A slope stands where an advantage would: the gradient is that of the objective.
        """
        if self._has_pairs:
            slopes, keep, figures = self._pair_targets(rollouts, reward)
            self._step_values |= figures
        else:
            keep = choose_completions(reward, rollouts.cu_groups)
            slopes = keep.float()
        if reward.weights is not None:
            slopes = slopes * reward.weights
        return slopes, replace(reward, keep=keep)

    def _pair_targets(self, rollouts: Rollouts, reward: Reward) -> PairTargets:
        """What trains on preference pairs, at the present policy.

        One host sync, for the pairs. One pass without gradient scores them.
        """
        train = self._config.train
        pairs = choose_pairs(reward, rollouts.cu_groups)
        exists, chosen, rejected = fetch(pairs.exists, pairs.chosen, pairs.rejected)
        [prompts] = exists.nonzero(as_tuple=True)
        chosen, rejected = chosen[prompts], rejected[prompts]
        scored = sorted(chosen.tolist() + rejected.tolist())
        logprobs = rollouts.logprobs
        if scored:
            logprobs = self._logprobs(self._policy, rollouts, scored)
        device = reward.rewards.device
        prompts, chosen, rejected = send([prompts, chosen, rejected], device)
        weights = pairs.weights[prompts]
        is_scpo = train.objective == "scpo"
        return pair_targets(
            chosen,
            rejected,
            logprobs,
            rollouts.logprobs,
            rollouts.cu_seqlens,
            beta=train.dpo_beta,
            weights=weights if is_scpo else torch.ones_like(weights),
            nll=train.scpo_nll if is_scpo else 0.0,
        )

    def _plan(self, rollouts: Rollouts, indices: Sequence[int]) -> list[list[list[Piece]]]:
        """What each rank's micro-batches of these rollouts hold."""
        return plan_micro_batches(
            rollouts,
            indices,
            self._config.train.token_budget,
            self._world,
            share_prompts=self._policy.shares_prompts,
        )

    def _normalizer(self, lengths: list[int], kept: list[bool]) -> int:
        """What the loss of a mini-batch is divided by: its tokens or rollouts that count."""
        if self._objective.reduction == "token":
            return sum(compress(lengths, kept))
        return sum(kept)

    def _router_loss(self, batch: MicroBatch, router_logits: Sequence[Tensor]) -> Tensor:
        """The micro-batch's load-balancing loss, times its share of the mini-batch's tokens.

        A shared prompt counts once for each of its completions.
        """
        assert batch.minibatch_tokens is not None
        copies = token_copies(batch)
        loss = load_balancing_loss(router_logits, experts_per_token(self._policy.model), copies)
        return loss * (copies.sum() / batch.minibatch_tokens)

    def _may_mask(self, batch: MicroBatch) -> bool:
        """Whether the loss may leave tokens of the batch out before it computes their log-probs.

        Packing has left out all rollouts without a gradient. A sampler correction that is known
        before the pass may mask single tokens. Only then does the loss ask the device for them.
        """
        return batch.old_logprobs is not None and self._objective.correction.endswith("mask")

    def _update(self, also: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """One optimizer update. Returns the gradient norm, and `also` in host memory.

        They are read before the weights change. Raises ValueError for a norm that is not finite.
        """
        grad_clip = self._config.train.grad_clip
        norm, read = clip_gradients(self._policy.model, grad_clip, self._world, also)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, read

    def _logprobs(
        self, policy: Policy | None, rollouts: Rollouts, indices: Sequence[int]
    ) -> Tensor:
        """[N] log-probs of these rollouts' tokens under a model. Other tokens have NaN."""
        assert policy is not None
        self._meter.count_scoring(rollouts, indices)
        with self._meter.part("score"):
            return rollout_logprobs(
                policy,
                rollouts,
                indices,
                temperature=self._temperature,
                token_budget=self._config.train.token_budget,
                check=self._check,
            )

    def _sequence_kl(self, rollouts: Rollouts) -> Tensor:
        """[R] k3 estimate of the KL to the starting model, summed over each completion.

        Source: joschu.net/blog/kl-approx.html.
        """
        all_rollouts = range(len(rollouts.truncated))
        reference_logprobs = self._logprobs(self._reference, rollouts, all_rollouts)
        log_ratio = reference_logprobs - self._logprobs(self._policy, rollouts, all_rollouts)
        k3 = log_ratio.exp() - 1 - log_ratio
        rollout = segment_ids(rollouts.cu_seqlens, len(k3))
        return torch.zeros(len(all_rollouts), device=k3.device).index_add(0, rollout, k3)


def _minibatch_slices(kept: list[bool], layout: Layout, minibatches: int) -> list[slice]:
    """The rollouts of each mini-batch.

    Mini-batches have equally many prompts with a rollout that trains.
    """
    bounds = layout.group_bounds
    trained = [first for first, last in pairwise(bounds) if any(kept[first:last])]
    cuts = [0] * (minibatches - 1)
    if trained:
        cuts = [trained[len(trained) * part // minibatches] for part in range(1, minibatches)]
    return [slice(first, last) for first, last in pairwise([0, *cuts, bounds[-1]])]
