"""The passes over an LM head, chunk by chunk: log-probs alone, or log-probs and gradients.

A chunk of C rows makes its logits by one GEMM in fp32. If a gradient is needed, dlogits overwrite
them, and two GEMMs make dX and dW of the dlogits. There is one [C, V] buffer in all. The rows of a
chunk go through logits_kernel.py or logits_fused_kernel.py (Triton) or logits_torch.py.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from srt_kernels.core.backend import use_triton
from srt_kernels.core.segments import chunk_slices, even_slices
from srt_kernels.lm_head import gemm, logits_torch
from srt_kernels.lm_head.gradient_sources import (
    GradientSource,
    KnownGradient,
    ObjectiveGradient,
    entropy_gradient,
    needs_whole_rollouts,
)
from srt_kernels.lm_head.head_gradients import HeadGradients
from srt_kernels.lm_head.lm_head import LMHead
from srt_kernels.lm_head.row_statistics import complete_statistics
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_inputs import TokenInputs
from srt_kernels.objective.token_terms import token_terms


@torch.no_grad()
def logprob_pass(head: LMHead) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [n]. One GEMM."""
    logprobs, entropies = _empty_results(head)
    if use_triton(head.weight):
        # Imported here because Triton is optional.
        from srt_kernels.lm_head.logprob_kernel import CHUNK_ROWS, head_statistics

        parts = chunk_slices(len(head.targets), CHUNK_ROWS)
    else:
        parts = even_slices(len(head.targets), head.chunk_rows)
        head_statistics = _head_statistics_torch
    with _no_autocast(head):
        for part in parts:
            shard_statistics = head_statistics(head.hidden_rows(part), head.targets[part], head)
            statistics = complete_statistics(shard_statistics, head.group)
            logprobs[part] = statistics.logprobs
            entropies[part] = statistics.entropies
    return logprobs, entropies


@torch.no_grad()
def gradient_pass(
    head: LMHead,
    source: GradientSource,
    gradients: HeadGradients,
    parts: Sequence[slice] | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [n]; adds to `gradients`. One GEMM, and one for each gradient.

    parts: the chunks. None: equal ones.
    """
    logprobs, entropies = _empty_results(head)
    write_chunk_dlogits = _write_chunk_dlogits
    if use_triton(head.weight) and source.is_row_local and head.group is None:
        # Imported here because Triton is optional.
        from srt_kernels.lm_head.logits_fused_kernel import write_dlogits_fused

        write_chunk_dlogits = write_dlogits_fused
    parts = even_slices(len(head.targets), head.chunk_rows) if parts is None else parts
    longest = max((part.stop - part.start for part in parts), default=0)
    with _no_autocast(head):
        buffer = gemm.logits_buffer(head.weight, longest, head.dtype)
        for part in parts:
            x = head.hidden_rows(part)
            logits = gemm.logits_gemm(x, head.weight, head.is_exact_in_bf16, buffer)
            dlogits, row_factor = write_chunk_dlogits(
                logits, head, source, part, logprobs, entropies, gradients.scale
            )
            if dlogits is not None:
                gradients.add(head, part, x, dlogits, row_factor)
            del logits, dlogits  # before the next chunk allocates as much
    return logprobs, entropies


def objective_pass(
    objective: Objective, head: LMHead, inputs: TokenInputs, gradients: HeadGradients | None
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [n]; adds to `gradients` if there are any."""
    if gradients is None:
        return logprob_pass(head)
    if needs_whole_rollouts(objective, inputs.correction is not None):
        return _pass_whole_rollouts(objective, head, inputs, gradients)
    source = ObjectiveGradient(objective=objective, inputs=inputs)
    return gradient_pass(head, source, gradients)


def _pass_whole_rollouts(
    objective: Objective, head: LMHead, inputs: TokenInputs, gradients: HeadGradients
) -> tuple[Tensor, Tensor]:
    """gradient_pass for an objective that needs whole rollouts in a chunk."""
    source = ObjectiveGradient(objective=objective, inputs=inputs)
    if len(head.targets) <= head.chunk_rows:
        return gradient_pass(head, source, gradients)
    bounds = inputs.cu_seqlens.tolist()  # a host sync
    longest = max((stop - start for start, stop in itertools.pairwise(bounds)), default=0)
    if longest <= head.chunk_rows:
        parts = _whole_rollouts(bounds, head.chunk_rows)
        return gradient_pass(head, source, gradients, parts)
    logprobs = torch.empty_like(head.targets, dtype=head.dtype)
    entropies = torch.empty_like(logprobs)
    is_long = (inputs.cu_seqlens.diff() > head.chunk_rows)[inputs.rollout_index]
    for is_in_part, run_pass in ((~is_long, _pass_whole_rollouts), (is_long, _pass_long_rollouts)):
        index = is_in_part.nonzero().squeeze(1)
        part_logprobs, part_entropies = run_pass(
            objective, head.select(index), inputs.select(index), gradients
        )
        logprobs.index_copy_(0, index, part_logprobs)
        entropies.index_copy_(0, index, part_entropies)
    return logprobs, entropies


def _pass_long_rollouts(
    objective: Objective, head: LMHead, inputs: TokenInputs, gradients: HeadGradients
) -> tuple[Tensor, Tensor]:
    """logprob_pass, then gradient_pass of the tokens that have a gradient.

    Clipped tokens have none.
    """
    logprobs, entropies = logprob_pass(head)
    grad_logprob = token_terms(objective, logprobs, inputs).grad_logprob
    grad_entropy = entropy_gradient(objective, inputs)
    if grad_entropy is None:
        index = grad_logprob.nonzero().squeeze(1)
    else:
        index = torch.arange(len(grad_logprob), device=grad_logprob.device)
        grad_entropy = grad_entropy[index]
    source = KnownGradient(grad_logprob=grad_logprob[index], grad_entropy=grad_entropy)
    gradient_pass(head.select(index), source, gradients)
    return logprobs, entropies


def _whole_rollouts(bounds: Sequence[int], chunk_rows: int) -> list[slice]:
    """Chunks of at most chunk_rows rows that end where rollouts end.

    As few as _fill makes, and the largest of them as small as it can be. No rollout is longer than
    a chunk.
    """
    count = len(_fill(bounds, chunk_rows))
    longest = max(stop - start for start, stop in itertools.pairwise(bounds))
    sizes = range(max(1, longest), chunk_rows + 1)
    least = bisect.bisect_left(sizes, True, key=lambda rows: len(_fill(bounds, rows)) <= count)
    return _fill(bounds, sizes[least])


def _fill(bounds: Sequence[int], chunk_rows: int) -> list[slice]:
    """Chunks of at most chunk_rows rows that end where rollouts end, each as large as it can be."""
    parts = []
    start = 0
    for stop, next_stop in zip(bounds[1:], [*bounds[2:], None], strict=False):
        is_full = next_stop is None or next_stop - start > chunk_rows
        if stop > start and is_full:
            parts.append(slice(start, stop))
            start = stop
    return parts


def _write_chunk_dlogits(
    logits: Tensor,
    head: LMHead,
    source: GradientSource,
    part: slice,
    logprobs: Tensor,
    entropies: Tensor,
    scale: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Turn the logits [C, V] of targets[part] into dlogits in place, times scale.

    Returns dlogits (None if all are zero) and the row factor [C] to multiply them by (None: 1).
    Writes logprobs and entropies [n] at `part`.
    """
    engine = _logits_engine(head)
    targets = head.targets[part]
    shard_statistics = engine.row_statistics(logits, targets, head)
    statistics = complete_statistics(shard_statistics, head.group)
    logprobs[part] = statistics.logprobs
    entropies[part] = statistics.entropies
    grad_logprob, grad_entropy = source.gradients(part, statistics.logprobs)
    # All tokens may be clipped. Not checked on a GPU, where it would synchronise with the host.
    if grad_entropy is None and not grad_logprob.is_cuda and not grad_logprob.any():
        return None, None
    return engine.write_dlogits(
        logits, targets, statistics, grad_logprob, grad_entropy, head, scale
    )


def _logits_engine(head: LMHead) -> ModuleType:
    """The module whose row_statistics and write_dlogits compute this head."""
    if not use_triton(head.weight):
        return logits_torch
    # Imported here because Triton is optional.
    from srt_kernels.lm_head import logits_kernel

    return logits_kernel


def _head_statistics_torch(x: Tensor, targets: Tensor, head: LMHead) -> Tensor:
    """[4, C] statistics of hidden rows x [C, H]: the twin of logprob_kernel.head_statistics."""
    logits = gemm.logits_gemm(x, head.weight, head.is_exact_in_bf16)
    return logits_torch.row_statistics(logits, targets, head)


def _empty_results(head: LMHead) -> tuple[Tensor, Tensor]:
    logprobs = torch.empty(len(head.targets), dtype=head.dtype, device=head.hidden.device)
    return logprobs, torch.empty_like(logprobs)


def _no_autocast(head: LMHead) -> torch.autocast:
    """Autocast would send the GEMMs to bf16."""
    return torch.autocast(head.hidden.device.type, enabled=False)
