"""TRL's GRPOTrainer with the loss of srt_kernels, and the majority vote as a TRL reward function.

    from srt_fast.integrations.trl import SRTGRPOTrainer as GRPOTrainer, majority_reward
    GRPOTrainer(model, majority_reward(rule="boxed"), args, train_dataset=prompts).train()

A subclass, not a function that patches a trainer: two overridden methods and `super()` are all it takes. TRL keeps
sampling, rewards, advantages, optimizer, checkpoints, and every metric: its own _compute_loss, without gradient, runs on
our log-probs and entropies, so names, values and the adaptive entropy controller are TRL's by construction. Replaced are
- the forward pass: prompts and completions back to back without padding, through the attention of srt_fast/policy.py,
  which for whatever is not packed (sampling) is transformers' SDPA. A model that was loaded with another attention than
  "sdpa" (eager, flash_attention_2) keeps it and runs padded rows, of which the real tokens are selected;
- the LM head and the loss: linear_policy_loss over the tokens that TRL's mask counts, three GEMMs. Completions whose
  advantage is 0 have no backward pass unless a KL needs it.
Settings that no Objective says (objective_of lists them) keep TRL's own arithmetic, over linear_logprob: four GEMMs.
Everything else that cannot be taken over is a ValueError at construction.

Positions count from 0 at a prompt's first token, as in a sampler. TRL's own pass counts the padding left of it: the same
thing to rotary embeddings, but not to learned ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import trl
from accelerate import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel

from srt_fast.config import ModelConfig
from srt_fast.policy import ATTENTION, Policy
from srt_kernels import Objective, linear_logprob, linear_policy_loss, majority_vote
from srt_kernels.answer_key import answer_key, read_answer
from srt_kernels.checks import expect

READ = "1.16"  # the TRL that this file was read against and is tested with
# loss_type: the surrogate and the reduction of its Objective. The weights of vespo have none.
LOSSES = {
    "grpo": ("clip", "sequence"), "bnpo": ("clip", "token"), "dapo": ("clip", "token"), "dr_grpo": ("clip", "fixed"),
    "luspo": ("clip", "fixed"), "cispo": ("cispo", "token"), "sapo": ("sapo", "sequence"), "vespo": None,
}  # fmt: skip
PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)  # one process, or DDP
DROPOUTS = ("attention_dropout", "activation_dropout", "hidden_dropout", "dropout", "layerdrop")


# ---- settings ----


def check_settings(args: trl.GRPOConfig) -> None:
    """ValueError for a setting that neither linear_policy_loss nor TRL's arithmetic over packed rows can follow."""
    expect(args.loss_type in LOSSES, "loss_type", f"one of {', '.join(LOSSES)}", repr(args.loss_type))
    level = args.importance_sampling_level
    expect(level in ("token", "sequence"), "importance_sampling_level", "'token' or 'sequence'", repr(level))
    for name, unset in (("use_liger_kernel", False), ("torch_compile", False), ("neftune_noise_alpha", None)):
        value = getattr(args, name)
        expect(value == unset, name, f"{unset}: it changes the forward pass that is replaced here", value)


def _check_trainer(trainer: trl.GRPOTrainer) -> None:
    """ValueError for what shows only once TRL has its model."""
    kind = trainer.accelerator.distributed_type
    expect(kind in PLAIN, "distributed_type", "one process or DDP: other ways to split a model are not tried", kind.value)
    model, reader = (type(part).__name__ for part in (trainer.model, trainer.processing_class))
    expect(isinstance(trainer.model, PreTrainedModel), "model", "a transformers model without PEFT", model)
    expect(not trainer._is_vlm, "processing_class", "a tokenizer, for prompts of text alone", reader)
    coef = trainer.router_aux_loss_coef
    expect(not trainer.aux_loss_enabled, "router_aux_loss_coef", "0.0: there is no load-balancing loss over packed rows", coef)
    for name, module in trainer.model.named_modules():
        rates = [getattr(module, attribute, None) for attribute in DROPOUTS]
        rates = [module.p] if isinstance(module, nn.Dropout) else [rate for rate in rates if isinstance(rate, float)]
        expect(not any(rates), "disable_dropout", "True, or a model without dropout", f"{max(rates, default=0)} in {name}")


def objective_of(args: trl.GRPOConfig) -> Objective | None:
    """TRL's settings as an Objective; None where no Objective says them:

    loss_type "vespo"; an entropy bonus, which TRL takes as a mean over tokens whatever the loss type;
    top_entropy_quantile; off_policy_mask_threshold; use_bias_correction_kl with importance_sampling_level "sequence",
    where TRL multiplies each token's KL by its completion's ratio; and numbers out of an Objective's range, such as
    loss_type "cispo" with an epsilon_high below 1 or a delta of at most 1 + epsilon_high.
    """
    biased = args.beta != 0 and args.use_bias_correction_kl and args.importance_sampling_level == "sequence"
    by_entropy = args.entropy_coef != 0 or args.use_adaptive_entropy or args.top_entropy_quantile < 1
    if args.loss_type == "vespo" or biased or by_entropy or args.off_policy_mask_threshold is not None:
        return None
    surrogate, reduction = LOSSES[args.loss_type]
    try:
        return Objective(
            ratio=args.importance_sampling_level, surrogate=surrogate, reduction=reduction, clip_low=args.epsilon,
            clip_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
            delta=args.delta if surrogate == "clip" else None, tau_pos=args.sapo_temperature_pos,
            tau_neg=args.sapo_temperature_neg, kl_coef=args.beta, kl_bias_correction=args.use_bias_correction_kl,
            max_length=1 if args.loss_type == "luspo" else args.max_completion_length,
        )  # fmt: skip
    except ValueError:
        return None


# ---- the forward pass ----


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """r prompts with completions, T tokens back to back, n of them scored.

    Prompts of 2 and 1 tokens, completions of 1 and 2: T = 6, n = 3.
    """

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64: [0 1 2 | 0 1 2]
    cu_input: Tensor  # [r+1] int32, prompts and completions: [0, 3, 6]
    row_index: Tensor  # [n] int64, the hidden row that predicts each target: [1 | 3 4]
    targets: Tensor  # [n] int64, the scored tokens
    cu_seqlens: Tensor  # [r+1] int32, scored tokens: [0, 1, 3]


def _offsets(lengths: Tensor) -> Tensor:
    return nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def pack_rows(ids: Tensor, valid: Tensor, scored: Tensor) -> PackedRows:
    """Padded rows without their padding: ids [r, L]; valid [r, L] bool, no gaps in a row; scored [r, L] bool, within
    valid and never a row's first token."""
    place = valid.flatten().cumsum(0).view_as(ids) - 1
    return PackedRows(
        input_ids=ids[valid], position_ids=(valid.cumsum(1) - 1)[valid], cu_input=_offsets(valid.sum(1)),
        row_index=place[scored] - 1, targets=ids[scored], cu_seqlens=_offsets(scored.sum(1)),
    )  # fmt: skip


def _spread(where: Tensor, values: Tensor) -> Tensor:
    """[n] -> the shape of `where`, 0 elsewhere."""
    return values.new_zeros(where.shape).masked_scatter(where, values)


class PaddedPolicy(Policy):
    """For an attention that cannot pack: the model's own forward over rows padded on the right."""

    def hidden(self, input_ids: Tensor, position_ids: Tensor, cu_input: Tensor) -> Tensor:
        """As Policy.hidden: [T, H]."""
        lengths = cu_input.diff()
        valid = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        ids, positions = (torch.zeros_like(valid, dtype=t.dtype).masked_scatter(valid, t) for t in (input_ids, position_ids))
        out = self.model.base_model(input_ids=ids, attention_mask=valid.long(), position_ids=positions, use_cache=False)
        return out.last_hidden_state[valid]


def _add_fused_forward(model: PreTrainedModel, tokenizer) -> None:
    """model(fused=f) returns f(policy), where policy.hidden and policy.head are the model's.

    Through the model's forward, because what DDP, autocast and gradient scaling do happens around that. Raises
    ValueError for an architecture whose logits are not its head times its hidden states.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)  # for good: gradient checkpointing runs it once more in backward
    packs = model.config._attn_implementation == ATTENTION
    policy = (Policy if packs else PaddedPolicy)(model, tokenizer, ModelConfig(autocast="off"))  # accelerate has its own
    own_forward = model.forward

    @functools.wraps(type(model).forward)  # generate() checks its arguments against this signature
    def forward(self, *args, fused: Callable[[Policy], tuple[Tensor, ...]] | None = None, **kwargs):
        return own_forward(*args, **kwargs) if fused is None else fused(policy)

    model.forward = types.MethodType(forward, model)


# ---- the trainer ----


class SRTGRPOTrainer(trl.GRPOTrainer):
    """GRPOTrainer whose loss and log-probs come from srt_kernels; see the top of this file.

    Takes what GRPOTrainer takes, and entropy_of: "all" also scores the completions that do not train, without gradient,
    as TRL's entropy metric is a mean over them too; "trained" leaves them out, and entropy and clip ratios are then of
    the completions that train. The loss is the same.

    `objective` is what linear_policy_loss minimises, or None where TRL's own arithmetic does (objective_of).
    """

    def __init__(self, model, reward_funcs=None, args=None, *others, entropy_of: Literal["all", "trained"] = "all", **keywords):
        expect(entropy_of in ("all", "trained"), "entropy_of", "'all' or 'trained'", repr(entropy_of))
        if not trl.__version__.startswith(READ + "."):
            warnings.warn(f"made for TRL {READ}, not {trl.__version__}: its new settings may not reach the loss", stacklevel=2)
        if args is not None:
            check_settings(args)
        super().__init__(model, reward_funcs, args, *others, **keywords)
        _check_trainer(self)
        self.objective, self._entropy_of = objective_of(self.args), entropy_of
        self._scored: tuple[Tensor, Tensor] | None = None  # [B, C] log-probs and entropies, for TRL to make metrics of
        for each in (self.model, self.ref_model):
            if each is not None:
                _add_fused_forward(each, self.processing_class)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False,
        compute_aux_loss=False, **media,
    ):  # fmt: skip
        """As in TRL: log-probs and entropies [B, C] of the last C = logits_to_keep tokens, 0 where attention_mask is."""
        assert not compute_aux_loss and all(value is None for value in media.values()), media
        if self._scored is not None:
            return *self._scored, None
        scored = attention_mask.bool()
        scored[:, :-logits_to_keep] = False
        parts = zip(*(t.split(batch_size or len(t)) for t in (input_ids, attention_mask, scored)), strict=True)
        packed = [torch.cat(results) for results in zip(*(self._score(model, *part) for part in parts), strict=True)]
        logps, entropies = (_spread(scored, t)[:, -logits_to_keep:] for t in packed)
        return logps, entropies if compute_entropy else None, None

    def _compute_loss(self, model, inputs):
        """As in TRL: the scalar loss of a micro-batch, and its metrics."""
        if self.objective is None:
            return super()._compute_loss(model, inputs)
        mask, advantages = self._mask(inputs), self._advantages(inputs)
        answered = mask.any(1)
        trains = answered if self.objective.kl_coef > 0 else (mask & (advantages != 0)).any(1)
        if not trains.any():  # a row of gradient 0 keeps the loss in the graph, and other processes from waiting
            trains = torch.arange(len(mask), device=mask.device) == 0
        loss, *trained = self._fused_loss(model, inputs, advantages, trains)
        scored = [_spread(mask & trains[:, None], t) for t in trained]
        rest = answered & ~trains
        if self._entropy_of == "all" and rest.any():
            others = self._score_rest(model, inputs, rest)
            scored = [t + _spread(mask & rest[:, None], other) for t, other in zip(scored, others, strict=True)]
        seen = inputs["completion_mask"] * trains[:, None] if self._entropy_of == "trained" else inputs["completion_mask"]
        self._scored = tuple(scored)
        with torch.no_grad():
            super()._compute_loss(model, inputs | {"completion_mask": seen})
        self._scored = None
        return loss

    @staticmethod
    def _mask(inputs: dict) -> Tensor:
        """[B, C] bool: the tokens that count, without padding, masked completions and what tools wrote."""
        return (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()

    def _advantages(self, inputs: dict) -> Tensor:
        """[B, C]. TRL's sampler correction, a factor of the policy term that is at least 0, is a factor here: that says
        its modes, both bounds and missing sampler log-probs alike."""
        advantages = inputs["advantages"]
        advantages = advantages[:, None] if advantages.dim() == 1 else advantages
        if self.use_vllm and self.vllm_importance_sampling_correction:
            advantages = advantages * inputs["importance_sampling_ratio"]
        return advantages.expand(inputs["completion_ids"].shape)

    def _rows(self, inputs: dict, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What pack_rows takes, of the chosen [B] rows."""
        parts = [(inputs["prompt_ids"], inputs["completion_ids"]), (inputs["prompt_mask"], inputs["completion_mask"])]
        ids, valid = (torch.cat(pair, dim=1)[chosen] for pair in parts)
        return ids, valid.bool(), nn.functional.pad(self._mask(inputs), (inputs["prompt_ids"].shape[1], 0))[chosen]

    def _fused_loss(self, model, inputs: dict, advantages: Tensor, trains: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of the rows `trains` [B] bool, and log-probs and entropies [n] of their tokens."""
        rows, counted = pack_rows(*self._rows(inputs, trains)), self._mask(inputs) & trains[:, None]
        logprobs = {
            name: inputs[key][counted]
            for name, key in (("old_logprobs", "old_per_token_logps"), ("ref_logprobs", "ref_per_token_logps"))
            if inputs.get(key) is not None
        }

        def fused(policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
            tensors, options = self._head_inputs(policy, rows)
            out = linear_policy_loss(
                *tensors, advantages[counted], rows.cu_seqlens, self.objective, **options, **logprobs,
                normalizer=self._normalizer(inputs), all_rows=True,
            )  # fmt: skip
            return out.loss, out.logprobs, out.entropies

        with self.accelerator.autocast():
            return model(fused=fused)

    def _normalizer(self, inputs: dict) -> float | Tensor:
        """What TRL divides this micro-batch's sum over tokens, or over completions, by."""
        training = self.model.training
        accumulated = self.current_gradient_accumulation_steps if training else 1
        if self.loss_type in ("dapo", "cispo"):  # the tokens of one optimizer step, of those of the whole generation batch
            part = accumulated / self.args.steps_per_generation if training else 1
            return inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes * part
        if self.loss_type == "bnpo":
            return self._mask(inputs).sum().clamp(min=1) * accumulated
        return len(inputs["completion_ids"]) * accumulated

    @torch.no_grad()
    def _score_rest(self, model, inputs: dict, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [n] of rows that do not train. Not through DDP: other processes may have none."""
        return self._score(self.accelerator.unwrap_model(model), *self._rows(inputs, rest))

    def _score(self, model, ids: Tensor, valid: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [n] of the scored tokens; arguments as of pack_rows."""
        rows = pack_rows(ids, valid.bool(), scored)

        def fused(policy: Policy) -> tuple[Tensor, Tensor]:
            tensors, options = self._head_inputs(policy, rows)
            return linear_logprob(*tensors, **options)

        with self.accelerator.autocast():
            return model(fused=fused)

    def _head_inputs(self, policy: Policy, rows: PackedRows) -> tuple[tuple[Tensor, Tensor, Tensor], dict]:
        """Hidden states, head and targets, and the head's options, as srt_kernels takes them."""
        hidden, head = policy.hidden(rows.input_ids, rows.position_ids, rows.cu_input), policy.head
        device = hidden.device.type
        if self.args.cast_lm_head_to_fp32:
            hidden = hidden.float()
        elif torch.is_autocast_enabled(device):  # final norms give float32
            hidden = hidden.to(torch.get_autocast_dtype(device))
        scale = head.temperature_factor  # models divide by it before their softcap, srt_kernels' temperature comes after
        softcap = None if head.softcap is None else head.softcap * scale
        options = {"bias": head.bias, "softcap": softcap, "row_index": rows.row_index, "temperature": self.temperature * scale}
        return (hidden, head.weight, rows.targets), options


# ---- the reward ----


def majority_reward(rule: str = "boxed") -> Callable[..., list[float]]:
    r"""A TRL reward function without labels: 1 for each completion whose final answer is its group's majority, else 0.

    rule says how to find the answer (srt_kernels.read_answer: boxed, tag, last_number, whole); spellings of one answer
    are one vote, and no answer never earns. Of a conversation the last message of the assistant counts.

    A group is all completions of one prompt in the batch. TRL puts num_generations copies of a prompt next to each
    other, and splits that batch over processes wherever it wants to; so each process sends keys of 8 bytes for prompt and
    answer to all others and groups by prompt. Copies of a prompt in the data set vote together. A prompt with one
    completion (a data set's prompt that was changed for each, num_generations_eval 1) is a ValueError: its vote would be
    its own. All processes must call it equally often, as TRL does.

    Logs vote/share, the mean part of a group that agrees, and vote/answered, the part of completions with an answer.
    """
    read_answer("", rule)  # an unknown rule raises here

    def reward(prompts: list, completions: list, log_metric: Callable[[str, float], None] | None = None, **columns):
        own = [(_prompt_key(prompt), answer_key(read_answer(_text(completion), rule)))
               for prompt, completion in zip(prompts, completions, strict=True)]
        everyone, first = _gather(own)
        rewards, share, answered = _vote(*torch.tensor(everyone, dtype=torch.int64).view(-1, 2).unbind(1))
        if log_metric is not None:
            log_metric("vote/share", share)
            log_metric("vote/answered", answered)
        return rewards[first : first + len(own)].tolist()

    reward.__name__ = "majority_reward"  # TRL logs rewards under it
    return reward


def _vote(prompt_keys: Tensor, keys: Tensor) -> tuple[Tensor, float, float]:
    """[R] prompts and answers -> rewards [R] in the same order, mean share of the groups, part that has an answer."""
    _, group, sizes = prompt_keys.unique(return_inverse=True, return_counts=True)
    expect(bool((sizes > 1).all()), "prompts", "at least two completions of each", f"{int((sizes == 1).sum())} with one")
    order = group.argsort(stable=True)
    vote = majority_vote(keys[order], _offsets(sizes))
    rewards = torch.empty_like(vote.rewards)
    rewards[order] = vote.rewards
    return rewards, vote.share.mean().item(), vote.valid.float().mean().item()


def _gather(own: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """The keys of all processes, in the order of their ranks, and where this process's begin."""
    if not (dist.is_available() and dist.is_initialized()):
        return own, 0
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return sum(parts, []), sum(map(len, parts[: dist.get_rank()]))


def _prompt_key(prompt: str | list[dict]) -> int:
    """Signed 64-bit hash, the same in every process."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=_no_text)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True)


def _no_text(part: object) -> None:
    raise ValueError(f"prompts: expected strings or messages of text, got a {type(part).__name__} in one")


def _text(completion: str | list[dict]) -> str:
    """What the assistant wrote last."""
    if isinstance(completion, str):
        return completion
    said = [message.get("content") for message in completion if message.get("role") == "assistant"]
    content = said[-1] if said else None
    if isinstance(content, list):  # parts, as multimodal templates have them
        return "".join(part.get("text", "") for part in content)
    return content or ""
