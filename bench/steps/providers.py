"""Who is compared: one function per provider, which returns its training step.

A step goes forward and backward once: the GRPO loss (clip 0.2, mean over rollouts of the mean over
their tokens, on policy, no KL), and its gradients by hidden states and LM head. Providers marked
"ce" have the mean cross-entropy only. They bound what a fused loss of theirs could cost, and are no
training step. Those marked "none" are other work over the same rows, and their results are not
checked. Each function imports its package itself. If a package is missing or does not run on
the device, the function raises, and the benchmark lists the provider with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from measure import free_bytes
from steps.batch import Batch, Tokens
from steps.ours import gemms, ours, ours_frozen, ours_logprob, ours_logprob_grad
from steps.provider import CLIP, LogprobOp, Provider, Step, StepResult, differentiate


def _grpo_step(op: LogprobOp, tokens: Tokens, weight: Tensor) -> Step:
    """The step of `op`, with the loss as TRL writes it."""

    def step() -> StepResult:
        logprobs = op(tokens.hidden, weight, tokens.targets)
        ratio = (logprobs - logprobs.detach()).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        gain = torch.minimum(ratio * tokens.advantages, clipped * tokens.advantages)
        loss = -(gain * tokens.weights).sum()
        return differentiate(loss, logprobs, tokens.hidden, weight)

    return step


def _torch_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logprobs = (hidden @ weight.T).float().log_softmax(-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1)


def _check_memory(tokens: Tokens, weight: Tensor) -> None:
    """Raise MemoryError if [N, V] tensors do not fit.

    In backward three of them live at the same time, in fp32: the result of log_softmax, its
    gradient and that of the logits.
    """
    needed = 12 * len(tokens.hidden) * len(weight)
    free = free_bytes(weight.device)
    if needed > free:
        raise MemoryError(
            f"[N, V] tensors need about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
        )


def torch_packed(batch: Batch) -> Step:
    _check_memory(batch.packed, batch.weight)
    return _grpo_step(_torch_logprobs, batch.packed, batch.weight)


def torch_padded(batch: Batch) -> Step:
    _check_memory(batch.padded, batch.weight)
    return _grpo_step(_torch_logprobs, batch.padded, batch.weight)


def compile_packed(batch: Batch) -> Step:
    _check_memory(batch.packed, batch.weight)
    return _grpo_step(torch.compile(_torch_logprobs), batch.packed, batch.weight)


def _trl_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    outputs = ("log_probs", "entropy")  # what GRPOTrainer asks for
    return ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, outputs
    )[0]


def trl_packed(batch: Batch) -> Step:
    return _grpo_step(_trl_logprobs, batch.packed, batch.weight)


def trl_padded(batch: Batch) -> Step:
    """As TRL does it: on devices with Triton the positions with a token, else all of them."""
    keep = batch.keep.flatten()

    def logprobs_of_tokens(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logprobs = _trl_logprobs(hidden[keep], weight, targets[keep])
        return logprobs.new_zeros(len(keep)).masked_scatter(keep, logprobs)

    op = logprobs_of_tokens if keep.is_cuda else _trl_logprobs
    return _grpo_step(op, batch.padded, batch.weight)


def liger_grpo(batch: Batch) -> Step:
    """Takes [R, longest] only, and computes all of it."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    tokens = batch.padded
    shape = batch.keep.shape
    grpo_loss = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, loss_type="grpo", epsilon_low=CLIP, epsilon_high=CLIP
    )

    def step() -> StepResult:
        hidden = tokens.hidden.view(*shape, -1)
        targets = tokens.targets.view(shape)
        loss, _ = grpo_loss(hidden, batch.weight, targets, batch.keep, batch.advantages)
        return differentiate(loss, None, tokens.hidden, batch.weight)

    return step


def _liger_grpo_logprobs(batch: Batch) -> Tensor:
    """The log-probs of Liger's chunks, one rollout at a time as in its loss."""
    from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

    op = LigerFusedLinearPPOBase.chunk_forward
    width = batch.keep.shape[1]
    hidden_rows = batch.padded.hidden.split(width)
    target_rows = batch.padded.targets.split(width)
    with torch.no_grad():
        rows = [
            op(hidden[None], batch.weight, targets[None])
            for hidden, targets in zip(hidden_rows, target_rows, strict=True)
        ]
        return torch.cat(rows, 1).squeeze(0)


def liger_scaled_ce(batch: Batch) -> Step:
    """Liger's log-prob op for RL: CuTe kernels on Hopper, elsewhere chunks of 512 rows."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    def op(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets)

    return _grpo_step(op, batch.packed, batch.weight)


def _liger_ce(reduction: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """weight, hidden, targets -> cross-entropy."""
    from liger_kernel.transformers.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyLoss,
    )

    return LigerFusedLinearCrossEntropyLoss(reduction=reduction)


def liger_ce_tokens(batch: Batch) -> Step:
    """Fused linear CE token by token: the logits are made again in backward."""
    cross_entropy = _liger_ce("none")

    def op(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -cross_entropy(weight, hidden, targets)

    return _grpo_step(op, batch.packed, batch.weight)


def liger_ce(batch: Batch) -> Step:
    tokens = batch.packed
    mean_cross_entropy = _liger_ce("mean")

    def step() -> StepResult:
        loss = mean_cross_entropy(batch.weight, tokens.hidden, tokens.targets)
        return differentiate(loss, None, tokens.hidden, batch.weight)

    return step


def cut_cross_entropy(batch: Batch) -> Step:
    """Apple's, with its gradient filter as it comes."""
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore

    def op(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -linear_cross_entropy(hidden, weight, targets, reduction="none")

    return _grpo_step(op, batch.packed, batch.weight)


def verl(batch: Batch) -> Step:
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    def op(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, 1.0, "none", None)[0]

    return _grpo_step(op, batch.packed, batch.weight)


def quack_ce(batch: Batch) -> Step:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy  # pyright: ignore

    tokens = batch.packed

    def step() -> StepResult:
        loss = chunked_linear_cross_entropy(tokens.hidden, batch.weight, tokens.targets)
        return differentiate(loss, None, tokens.hidden, batch.weight)

    return step


# Ours and the floor come first: they are measured even if the time budget runs out.
PROVIDERS = (
    Provider(name="ours", build=ours),
    Provider(name="gemms", build=gemms, objective="none"),
    Provider(name="ours_frozen", build=ours_frozen, objective="none"),
    Provider(name="ours_logprob", build=ours_logprob, objective="none"),
    Provider(name="ours_logprob_grad", build=ours_logprob_grad, objective="none"),
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
