"""Ways to launch each Triton kernel, for bench/aot.py.

The package's own launchers run, on meta tensors of real sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from srt_kernels import Objective
from srt_kernels.answers.extract import ANSWER_RULES
from srt_kernels.answers.kernel import keys as answer_kernel
from srt_kernels.core import scale_kernel
from srt_kernels.groups import group_advantage_kernel, majority_vote_kernel
from srt_kernels.groups.group_advantage import KINDS
from srt_kernels.lm_head import logits_fused_kernel, logits_kernel, logprob_kernel
from srt_kernels.lm_head.gemm import padded_columns
from srt_kernels.lm_head.gradient_sources import (
    GradientSource,
    KnownGradient,
    ObjectiveGradient,
)
from srt_kernels.lm_head.lm_head import LMHead
from srt_kernels.lm_head.row_statistics import RowStatistics
from srt_kernels.objective import policy_loss_kernel
from srt_kernels.objective.objective import PRESETS
from srt_kernels.objective.token_inputs import TokenInputs

FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
VOCAB_SIZE = 128256
HIDDEN_SIZE = 4096
ROWS = 1024
ROLLOUTS = 16


@dataclass(frozen=True)
class Variant:
    """One way to launch a kernel, and its rules beside "no spills"."""

    kernel: str
    name: str
    launch: Callable[[], object]
    # Times that it reads V numbers of 4 bytes (logits, bias), 128 bits at a load.
    streams: int = 0
    needs_tensor_cores: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}[{self.name}]"


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _head(
    dtype: str,
    has_options: bool = False,
    vocab_size: int = VOCAB_SIZE,
    rows: int = ROWS,
    hidden_size: int = HIDDEN_SIZE,
) -> LMHead:
    """has_options: bias and softcap."""
    return LMHead(
        hidden=_meta(rows, hidden_size, dtype=FLOATS[dtype]),
        weight=_meta(vocab_size, hidden_size, dtype=FLOATS[dtype]),
        bias=_meta(vocab_size) if has_options else None,
        targets=_meta(rows, dtype=torch.int64),
        row_index=None,
        temperature=0.7,
        softcap=30.0 if has_options else None,
        chunk_rows=rows,
        group=None,
        vocab_start=0,
        has_unique_rows=True,
    )


def _scale(head: LMHead) -> Tensor | None:
    """As in HeadGradients."""
    return _meta(1) if head.weight.dtype == torch.float16 else None


def _logits(head: LMHead) -> Tensor:
    """As in gemm.logits_buffer."""
    rows = len(head.hidden)
    vocab_size = len(head.weight)
    return _meta(rows, padded_columns(vocab_size))[:, :vocab_size]


def _inputs(objective: Objective, tokens: int, offsets: torch.dtype = torch.int32) -> TokenInputs:
    """Inputs of an objective. A correction waits for the log-probs."""
    vector = partial(_meta, tokens)
    has_correction = objective.correction != "none"
    return TokenInputs(
        advantages=vector(),
        weights=vector(),
        rollout_index=vector(dtype=torch.int64),
        cu_seqlens=_meta(ROLLOUTS + 1, dtype=offsets),
        old_logprobs=None if has_correction else vector(),
        ref_logprobs=vector() if objective.kl_coef > 0 else None,
        sampler_logprobs=vector() if has_correction else None,
        correction=None if has_correction else vector(),
    )


def _stats(**options: Any) -> None:
    head = _head("bf16", **options)
    logits_kernel.row_statistics(_logits(head), head.targets, head)


def _dlogits(dtype: str, has_entropy: bool, **options: Any) -> None:
    head = _head(dtype, **options)
    vector = partial(_meta, len(head.hidden))
    logits_kernel.write_dlogits(
        _logits(head),
        head.targets,
        RowStatistics(*[vector() for _ in fields(RowStatistics)]),
        grad_logprob=vector(),
        grad_entropy=vector() if has_entropy else None,
        head=head,
        scale=_scale(head),
    )


def _fused(
    dtype: str, objective: Objective | None = None, has_entropy: bool = True, **options: Any
) -> None:
    """Without an objective gradients are known; of the entropy too if has_entropy."""
    head = _head(dtype, **options)
    rows = len(head.hidden)
    vector = partial(_meta, rows)
    source: GradientSource
    if objective is None:
        grad_entropy = vector() if has_entropy else None
        source = KnownGradient(grad_logprob=vector(), grad_entropy=grad_entropy)
    else:
        source = ObjectiveGradient(objective=objective, inputs=_inputs(objective, rows))
    logits_fused_kernel.write_dlogits_fused(
        _logits(head),
        head,
        source,
        slice(0, rows),
        logprobs=vector(),
        entropies=vector(),
        scale=_scale(head),
    )


def _logprob(
    dtype: str, tile: logprob_kernel.Tile | None = None, hidden_size: int = HIDDEN_SIZE, **options
) -> None:
    """Both kernels of logprob_kernel. tile: None is that of the GPU."""
    head = _head(dtype, hidden_size=hidden_size, **options)
    tile_of = logprob_kernel.tile_of

    def tile_on_gpu(_: torch.device, dtype: torch.dtype) -> logprob_kernel.Tile:
        return tile or tile_of(torch.device("cuda"), dtype)

    with patch.object(logprob_kernel, "tile_of", tile_on_gpu):
        logprob_kernel.head_statistics(head.hidden, head.targets, head)


def _scale_gradient(dtype: str, *shape: int) -> None:
    scale_kernel.scale_(_meta(*shape, dtype=FLOATS[dtype]), _meta(1))


def _policy(objective: Objective, tokens: int = ROWS, offsets: torch.dtype = torch.int32) -> None:
    inputs = _inputs(objective, tokens, offsets)
    policy_loss_kernel.policy_terms(objective, _meta(tokens), inputs)


def _groups(kind: str, dtype: str = "fp32", offsets: torch.dtype = torch.int32) -> None:
    rewards = _meta(ROWS, dtype=FLOATS[dtype])
    cu_groups = _meta(ROLLOUTS + 1, dtype=offsets)
    group_advantage_kernel.group_advantages(rewards, cu_groups, kind, eps=1e-4)


def _votes(weights: str | None, offsets: torch.dtype, share_over_all: bool) -> None:
    majority_vote_kernel.vote_by_comparing(
        keys=_meta(ROWS, dtype=torch.int64),
        cu_groups=_meta(ROLLOUTS + 1, dtype=offsets),
        weights=None if weights is None else _meta(ROWS, dtype=FLOATS[weights]),
        share_over_all=share_over_all,
    )


def _answers(rule: str, offsets: torch.dtype = torch.int32, rollouts: int = 512) -> None:
    """The three kernels of the answers' keys."""
    answer_kernel.answer_keys(
        _meta(rollouts * 3072, dtype=torch.int64),
        _meta(rollouts + 1, dtype=offsets),
        _meta(1 << 20, dtype=torch.uint8),
        _meta(VOCAB_SIZE + 1, dtype=torch.int32),
        _meta(VOCAB_SIZE, dtype=torch.int32),
        rule,
    )


preset = Objective.preset
EXTRA_TERMS: dict[str, Any] = dict(
    delta=3.0, kl_coef=0.1, kl_bias_correction=True, entropy_coef=0.1
)
WHOLE_NUMBERS = preset(  # ints, where others have floats
    "cispo", clip_high=5, correction="token_truncate", correction_cap=1, kl_coef=1
)
TOKEN = preset("srt", correction="token_mask", **EXTRA_TERMS)
SEQUENCE = preset("gspo", correction="sequence_mask", **EXTRA_TERMS)
ALL_PRESETS = {name: preset(name, max_length=64) for name in PRESETS}
# A vocabulary whose rows are not aligned, and one row of one entry: the JIT makes a constant of
# every size that is 1.
ODD = dict(vocab_size=50257)
ONE = dict(vocab_size=1, rows=1)
# Each list has the variant with most code first.


def _head_variants() -> Iterator[Variant]:
    full = "bias, softcap, entropy"
    stats = partial(Variant, "stats_kernel")
    yield stats("bias, softcap", partial(_stats, has_options=True), streams=2)
    yield stats("plain", _stats, streams=1)
    yield stats("V 50257", partial(_stats, **ODD), streams=1)
    yield stats("one row, V 1", partial(_stats, **ONE))
    dlogits = partial(Variant, "dlogits_kernel")
    yield dlogits(f"bf16, {full}", partial(_dlogits, "bf16", True, has_options=True), streams=2)
    yield dlogits("bf16", partial(_dlogits, "bf16", False), streams=1)
    yield dlogits(f"fp16, {full}", partial(_dlogits, "fp16", True, has_options=True), streams=2)
    yield dlogits("fp32", partial(_dlogits, "fp32", False), streams=1)
    yield dlogits("bf16, V 50257", partial(_dlogits, "bf16", False, **ODD), streams=1)
    yield dlogits("bf16, one row, V 1", partial(_dlogits, "bf16", True, **ONE))
    fused = partial(Variant, "fused_kernel")
    launch = partial(_fused, "bf16", TOKEN, has_options=True)
    yield fused(f"bf16, {full}, clip, delta, k3, mask", launch, streams=4)
    yield fused(
        f"bf16, {full}, known gradient", partial(_fused, "bf16", has_options=True), streams=4
    )
    yield fused(
        f"fp16, {full}, known gradient", partial(_fused, "fp16", has_options=True), streams=4
    )
    yield fused("bf16, known gradient", partial(_fused, "bf16", has_entropy=False), streams=2)
    launch = partial(_fused, "bf16", has_entropy=False, **ODD)
    yield fused("bf16, known gradient, V 50257", launch, streams=2)
    yield fused("bf16, known gradient, one row, V 1", partial(_fused, "bf16", **ONE))
    yield fused("bf16, cispo of whole numbers", partial(_fused, "bf16", WHOLE_NUMBERS), streams=2)
    for name, objective in ALL_PRESETS.items():
        if objective.ratio != "sequence":
            yield fused(f"bf16, {name}", partial(_fused, "bf16", objective), streams=2)


def _logprob_variants() -> Iterator[Variant]:
    tiles = partial(Variant, "tiles_kernel", needs_tensor_cores=True)
    yield tiles("bf16, bias, softcap", partial(_logprob, "bf16", has_options=True))
    yield tiles("bf16", partial(_logprob, "bf16"))
    yield tiles("fp16, bias, softcap", partial(_logprob, "fp16", has_options=True))
    launch = partial(_logprob, "fp32", has_options=True)
    yield Variant("tiles_kernel", "fp32, bias, softcap", launch)
    launch = partial(_logprob, "bf16", logprob_kernel.SAFE, has_options=True)
    yield tiles("bf16, unknown GPU", launch)
    launch = partial(_logprob, "bf16", has_options=True, hidden_size=HIDDEN_SIZE + 4)
    yield tiles("bf16, bias, softcap, rows that are not aligned", launch)
    yield tiles("bf16, V 50257", partial(_logprob, "bf16", **ODD))
    yield tiles("bf16, one row, V 1", partial(_logprob, "bf16", **ONE))
    combine = partial(Variant, "combine_kernel")
    yield combine("many tiles", partial(_logprob, "bf16"))
    yield combine("one row, one tile", partial(_logprob, "bf16", **ONE))


def _scale_variants() -> Iterator[Variant]:
    scale = partial(Variant, "scale_kernel")
    yield scale("fp32", partial(_scale_gradient, "fp32", VOCAB_SIZE, HIDDEN_SIZE), streams=1)
    yield scale("bf16", partial(_scale_gradient, "bf16", VOCAB_SIZE, HIDDEN_SIZE))
    yield scale("fp32, 2^31 elements", partial(_scale_gradient, "fp32", 1 << 18, 1 << 13))
    yield scale("fp32, one element", partial(_scale_gradient, "fp32", 1))


def _objective_variants() -> Iterator[Variant]:
    policy = partial(Variant, "policy_kernel")
    yield policy("gspo, delta, k3, mask", partial(_policy, SEQUENCE))
    yield policy("srt, delta, k3, token mask", partial(_policy, TOKEN))
    yield policy("cispo of whole numbers", partial(_policy, WHOLE_NUMBERS))
    srt = ALL_PRESETS["srt"]
    yield policy("srt, int64 offsets", partial(_policy, srt, offsets=torch.int64))
    yield policy("srt, one token", partial(_policy, srt, tokens=1))
    for name, objective in ALL_PRESETS.items():
        yield policy(name, partial(_policy, objective))


def _group_variants() -> Iterator[Variant]:
    group = partial(Variant, "group_kernel")
    yield group("grpo, fp32", partial(_groups, "grpo"))
    yield group("grpo, bf16, int64 offsets", partial(_groups, "grpo", "bf16", torch.int64))
    for kind in KINDS:
        if kind != "grpo":
            yield group(kind, partial(_groups, kind))
    vote = partial(Variant, "vote_kernel")
    yield vote("fp32 weights, share over valid", partial(_votes, "fp32", torch.int32, False))
    yield vote("bf16 weights, int64 offsets", partial(_votes, "bf16", torch.int64, True))
    yield vote("no weights", partial(_votes, None, torch.int32, True))


def _answer_variants() -> Iterator[Variant]:
    boxed = partial(_answers, "boxed")
    one_rollout = partial(_answers, "boxed", torch.int64, 1)
    for rule in sorted(ANSWER_RULES):
        yield Variant("find_kernel", rule, partial(_answers, rule))
    yield Variant("find_kernel", "one rollout", one_rollout)
    yield Variant("marks_kernel", "int32 offsets", boxed)
    yield Variant("form_kernel", "int32 offsets", boxed)
    yield Variant("marks_kernel", "one rollout, int64 offsets", one_rollout)
    yield Variant("form_kernel", "one rollout", one_rollout)


VARIANTS = [
    *_head_variants(),
    *_logprob_variants(),
    *_scale_variants(),
    *_objective_variants(),
    *_group_variants(),
    *_answer_variants(),
]
