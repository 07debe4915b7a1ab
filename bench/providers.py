"""Who is compared: one function per provider, which returns its training step.

A step goes forward and backward once: the GRPO loss (clip 0.2, mean over rollouts of the mean over their tokens, on
policy, no KL), and its gradients by hidden states and LM head. Providers marked "ce" know the mean cross-entropy only:
a bound on what a fused loss of theirs could cost, not a training step. Each imports its package itself: one that is
not there, or does not run on the device, raises, and the benchmark lists it with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from batch import Batch, Tokens
from measure import free_bytes
from torch import Tensor

from srt_kernels import Objective, linear_policy_loss

CLIP = 0.2
GEMM_ROWS = {"cpu": 1024, "cuda": 8192}  # logits of the bare GEMMs are [rows, V]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step returns, on the provider's own layout."""

    loss: Tensor  # scalar
    logprobs: Tensor | None  # [n]; None where the provider does not tell
    dhidden: Tensor  # [n, H]
    dweight: Tensor  # [V, H]


@dataclass(frozen=True, kw_only=True)
class Provider:
    name: str
    build: Callable[[Batch], Callable[[], Step | None]]
    layout: str = "packed"  # or "padded", or "sequences": [R, longest], padded where lengths differ
    objective: str = "grpo"  # or "ce", a bound; or "none", GEMMs alone
    logprobs: Callable[[Batch], Tensor] | None = None  # for those whose step hides them; not timed


def _finish(loss: Tensor, logprobs: Tensor | None, hidden: Tensor, weight: Tensor) -> Step:
    grads = torch.autograd.grad(loss, (hidden, weight))
    return Step(
        loss=loss.detach(),
        logprobs=None if logprobs is None else logprobs.detach(),
        dhidden=grads[0],
        dweight=grads[1],
    )


def _grpo(
    op: Callable[[Tensor, Tensor, Tensor], Tensor], tokens: Tokens, weight: Tensor
) -> Callable[[], Step]:
    """The step of `op`(hidden, weight, targets) -> log-probs [n], with the loss as TRL writes it."""

    def step() -> Step:
        logprobs = op(tokens.hidden, weight, tokens.targets)
        ratio = (logprobs - logprobs.detach()).exp()
        gain = torch.minimum(
            ratio * tokens.advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * tokens.advantages
        )
        return _finish(-(gain * tokens.weights).sum(), logprobs, tokens.hidden, weight)

    return step


def ours(batch: Batch) -> Callable[[], Step]:
    tokens, objective = batch.packed, Objective.preset("grpo", clip_low=CLIP, clip_high=CLIP)

    def step() -> Step:
        out = linear_policy_loss(
            tokens.hidden,
            batch.weight,
            tokens.targets,
            batch.advantages,
            batch.cu_seqlens,
            objective,
        )
        return _finish(out.loss, out.logprobs, tokens.hidden, batch.weight)

    return step


def gemms(batch: Batch) -> Callable[[], None]:
    """The three GEMMs that any trainable head needs, over the active rows: x @ W.T, dz @ W, dz.T @ x. The floor."""
    weight = batch.weight.detach()
    x = batch.packed.hidden.detach()[: batch.active]
    rows = min(GEMM_ROWS[x.device.type], len(x))
    z, dw = x.new_empty(rows, len(weight)), torch.empty_like(weight)
    dx = torch.empty_like(x)

    def step() -> None:
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            dz = torch.mm(part, weight.T, out=z[: len(part)])
            torch.mm(dz, weight, out=dx[start : start + rows])
            torch.mm(dz.T, part, out=dw)

    return step


def _torch_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logprobs = (hidden @ weight.T).float().log_softmax(-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1)


def _check_room(tokens: Tokens, weight: Tensor) -> None:
    """In backward log_softmax's result, its gradient and the logits' gradient live at the same time, in fp32."""
    needed, free = 12 * len(tokens.hidden) * len(weight), free_bytes(weight.device)
    if needed > free:
        raise MemoryError(
            f"[N, V] tensors need about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
        )


def torch_packed(batch: Batch) -> Callable[[], Step]:
    _check_room(batch.packed, batch.weight)
    return _grpo(_torch_logprobs, batch.packed, batch.weight)


def torch_padded(batch: Batch) -> Callable[[], Step]:
    _check_room(batch.padded, batch.weight)
    return _grpo(_torch_logprobs, batch.padded, batch.weight)


def compile_packed(batch: Batch) -> Callable[[], Step]:
    _check_room(batch.packed, batch.weight)
    return _grpo(torch.compile(_torch_logprobs), batch.packed, batch.weight)


def _trl_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    outputs = ("log_probs", "entropy")  # what GRPOTrainer asks for
    return ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, outputs
    )[0]


def trl_packed(batch: Batch) -> Callable[[], Step]:
    return _grpo(_trl_logprobs, batch.packed, batch.weight)


def trl_padded(batch: Batch) -> Callable[[], Step]:
    """As TRL does it: every position of a padded batch, but on devices with Triton those with a token."""
    keep = batch.keep.flatten()

    def compact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logprobs = _trl_logprobs(hidden[keep], weight, targets[keep])
        return logprobs.new_zeros(len(keep)).masked_scatter(keep, logprobs)

    return _grpo(compact if keep.is_cuda else _trl_logprobs, batch.padded, batch.weight)


def liger_grpo(batch: Batch) -> Callable[[], Step]:
    """Takes [R, longest] only, and computes all of it."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    tokens, shape = batch.padded, batch.keep.shape
    loss_of = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, loss_type="grpo", epsilon_low=CLIP, epsilon_high=CLIP
    )

    def step() -> Step:
        hidden = tokens.hidden.view(*shape, -1)
        loss, _ = loss_of(
            hidden, batch.weight, tokens.targets.view(shape), batch.keep, batch.advantages
        )
        return _finish(loss, None, tokens.hidden, batch.weight)

    return step


def _liger_grpo_logprobs(batch: Batch) -> Tensor:
    """Its chunks' own log-probs, one rollout at a time as its loss does."""
    from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

    width, op = batch.keep.shape[1], LigerFusedLinearPPOBase.chunk_forward
    rollouts = zip(batch.padded.hidden.split(width), batch.padded.targets.split(width), strict=True)
    with torch.no_grad():
        return torch.cat(
            [op(hidden[None], batch.weight, targets[None]) for hidden, targets in rollouts], 1
        ).squeeze(0)


def liger_scaled_ce(batch: Batch) -> Callable[[], Step]:
    """Liger's log-prob op for RL: CuTe kernels on Hopper, elsewhere chunks of 512 rows."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return _grpo(
        lambda h, w, t: -LigerFusedLinearScaledCrossEntropyFunction.apply(h, w, t),
        batch.packed,
        batch.weight,
    )


def _liger_ce(reduction: str):
    from liger_kernel.transformers.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyLoss,
    )

    return LigerFusedLinearCrossEntropyLoss(reduction=reduction)


def liger_ce_tokens(batch: Batch) -> Callable[[], Step]:
    """Fused linear CE token by token: the logits are made again in backward."""
    nll = _liger_ce("none")
    return _grpo(lambda h, w, t: -nll(w, h, t), batch.packed, batch.weight)


def liger_ce(batch: Batch) -> Callable[[], Step]:
    tokens, mean = batch.packed, _liger_ce("mean")
    return lambda: _finish(
        mean(batch.weight, tokens.hidden, tokens.targets), None, tokens.hidden, batch.weight
    )


def cut_cross_entropy(batch: Batch) -> Callable[[], Step]:
    """Apple's, with its gradient filter as it comes."""
    from cut_cross_entropy import linear_cross_entropy

    return _grpo(
        lambda h, w, t: -linear_cross_entropy(h, w, t, reduction="none"), batch.packed, batch.weight
    )


def verl(batch: Batch) -> Callable[[], Step]:
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return _grpo(
        lambda h, w, t: linear_cross_entropy(h, w, t, 1.0, "none", None)[0],
        batch.packed,
        batch.weight,
    )


def quack_ce(batch: Batch) -> Callable[[], Step]:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    tokens = batch.packed
    return lambda: _finish(
        chunked_linear_cross_entropy(tokens.hidden, batch.weight, tokens.targets),
        None,
        tokens.hidden,
        batch.weight,
    )


PROVIDERS = (  # ours and the floor first: a time budget that runs out leaves them measured
    Provider(name="ours", build=ours),
    Provider(name="gemms", build=gemms, objective="none"),
    Provider(name="trl_padded", build=trl_padded, layout="padded"),
    Provider(name="trl_packed", build=trl_packed),
    Provider(
        name="liger_grpo", build=liger_grpo, layout="sequences", logprobs=_liger_grpo_logprobs
    ),
    Provider(name="liger_scaled_ce", build=liger_scaled_ce),
    Provider(name="liger_ce_tokens", build=liger_ce_tokens),
    Provider(name="liger_ce", build=liger_ce, objective="ce"),
    Provider(name="torch_padded", build=torch_padded, layout="padded"),
    Provider(name="torch_packed", build=torch_packed),
    Provider(name="compile_packed", build=compile_packed),
    Provider(name="cut_cross_entropy", build=cut_cross_entropy),
    Provider(name="verl", build=verl),
    Provider(name="quack_ce", build=quack_ce, objective="ce"),
)
