"""Ways to launch each Triton kernel, for bench/aot.py: the package's own launchers, on meta tensors of real sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from srt_kernels import Objective
from srt_kernels.answers.kernel import keys as answer_kernel
from srt_kernels.groups import group_advantage_kernel, majority_vote_kernel
from srt_kernels.lm_head import logits_kernel as row_kernel
from srt_kernels.lm_head import logprob_kernel
from srt_kernels.lm_head.linear_policy_loss import ObjectiveGradient
from srt_kernels.lm_head.lm_head import KnownGradient, LMHead, RowStatistics
from srt_kernels.objective import policy_loss_kernel as policy_kernel
from srt_kernels.objective.objective import PRESETS
from srt_kernels.objective.policy_loss import TokenInputs

FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
VOCABULARY, HIDDEN, ROWS, ROLLOUTS = 128256, 4096, 1024, 16


@dataclass(frozen=True)
class Variant:
    """One way to launch a kernel, and what is asked of it beside no spills."""

    kernel: str
    name: str
    launch: Callable[[], object]
    streams: int = 0  # times that it reads V numbers of 4 bytes, 128 bits at a load: logits, bias
    tensor: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}[{self.name}]"


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _head(
    dtype: str, extras: bool = False, vocabulary: int = VOCABULARY, rows: int = ROWS
) -> LMHead:
    """extras: bias and softcap."""
    return LMHead(
        hidden=_meta(rows, HIDDEN, dtype=FLOATS[dtype]),
        weight=_meta(vocabulary, HIDDEN, dtype=FLOATS[dtype]),
        bias=_meta(vocabulary) if extras else None,
        targets=_meta(rows, dtype=torch.int64),
        rows=None,
        temperature=0.7,
        softcap=30.0 if extras else None,
        chunk=rows,
        group=None,
        vocab_start=0,
        unique=True,
    )


def _scale(head: LMHead) -> Tensor | None:
    """As HeadGradients has it."""
    return _meta(1) if head.weight.dtype == torch.float16 else None


def _logits(head: LMHead) -> Tensor:
    """As gemm.buffer has them."""
    rows, vocabulary = len(head.hidden), len(head.weight)
    return _meta(rows, -(-vocabulary // 16) * 16)[:, :vocabulary]


def _inputs(objective: Objective, tokens: int, offsets: torch.dtype = torch.int32) -> TokenInputs:
    """Of an objective whose corrections, if it has any, wait for the log-probs."""
    per_token, corrects = partial(_meta, tokens), objective.correction != "none"
    return TokenInputs(
        advantages=per_token(),
        weights=per_token(),
        rollout=per_token(dtype=torch.int64),
        cu_seqlens=_meta(ROLLOUTS + 1, dtype=offsets),
        old=None if corrects else per_token(),
        ref=per_token() if objective.kl_coef > 0 else None,
        sampler=per_token() if corrects else None,
        correction=None if corrects else per_token(),
    )


def _stats(**head) -> None:
    head = _head("bf16", **head)
    row_kernel.row_stats(_logits(head), head.targets, head)


def _dlogits(dtype: str, entropy: bool, **head) -> None:
    head = _head(dtype, **head)
    rows = partial(_meta, len(head.hidden))
    stats = RowStatistics(**{name: rows() for name in RowStatistics.__dataclass_fields__})
    row_kernel.row_dlogits(
        _logits(head), head.targets, stats, rows(), rows() if entropy else None, head, _scale(head)
    )


def _fused(dtype: str, objective: Objective | None = None, entropy: bool = True, **head) -> None:
    """Without an objective: gradients are given, of the entropy too if `entropy`."""
    head = _head(dtype, **head)
    total = len(head.hidden)
    rows = partial(_meta, total)
    given = KnownGradient(g=rows(), h=rows() if entropy else None)
    source = given if objective is None else ObjectiveGradient(objective, _inputs(objective, total))
    row_kernel.row_fused(
        _logits(head), head.targets, source, slice(0, total), rows(), rows(), head, _scale(head)
    )


def _logprob(dtype: str, tile: logprob_kernel.Tile | None = None, **head) -> None:
    """Both kernels of it. tile: of a GPU of which none is known."""
    head, tile_of = _head(dtype, **head), logprob_kernel.tile_of
    with patch.object(
        logprob_kernel, "tile_of", lambda _, dtype: tile or tile_of(torch.device("cuda"), dtype)
    ):
        logprob_kernel.head_statistics(head.hidden, head.targets, head)


def _policy(objective: Objective, tokens: int = ROWS, offsets: torch.dtype = torch.int32) -> None:
    policy_kernel.policy_terms(objective, _meta(tokens), _inputs(objective, tokens, offsets))


def _groups(kind: str, dtype: str, offsets: torch.dtype) -> None:
    group_advantage_kernel.group_advantages(
        _meta(ROWS, dtype=FLOATS[dtype]), _meta(ROLLOUTS + 1, dtype=offsets), kind, 1e-4
    )


def _votes(weights: str | None, offsets: torch.dtype, silence: bool) -> None:
    keys, cu_groups = _meta(ROWS, dtype=torch.int64), _meta(ROLLOUTS + 1, dtype=offsets)
    majority_vote_kernel.vote_by_comparing(
        keys, cu_groups, weights and _meta(ROWS, dtype=FLOATS[weights]), silence
    )


def _answers(rule: str, offsets: torch.dtype = torch.int32, rollouts: int = 512) -> None:
    """Launches the three kernels of the answer's key."""
    ids = torch.int32
    answer_kernel.answer_keys(
        _meta(rollouts * 3072, dtype=torch.int64),
        _meta(rollouts + 1, dtype=offsets),
        _meta(1 << 20, dtype=torch.uint8),
        _meta(VOCABULARY + 1, dtype=ids),
        _meta(VOCABULARY, dtype=ids),
        rule,
    )


def _variants() -> list[Variant]:
    """Of each kernel the one with most code first. One row, one token: the JIT makes a constant of every size that is 1."""
    preset, odd, one = Objective.preset, dict(vocabulary=50257), dict(vocabulary=1, rows=1)
    heavy = dict(delta=3.0, kl_coef=0.1, kl_bias_correction=True, entropy_coef=0.1)
    whole = preset(
        "cispo", clip_high=5, correction="token_truncate", correction_cap=1, kl_coef=1
    )  # ints, not floats
    full, token = "bias, softcap, entropy", preset("srt", correction="token_mask", **heavy)
    sequence = preset("gspo", correction="sequence_mask", **heavy)
    presets = {name: preset(name, max_length=64) for name in PRESETS}
    stats, dlogits = partial(Variant, "stats_kernel"), partial(Variant, "dlogits_kernel")
    fused, tiles = partial(Variant, "fused_kernel"), partial(Variant, "tiles_kernel")
    combine, policy = partial(Variant, "combine_kernel"), partial(Variant, "policy_kernel")
    group, vote = partial(Variant, "group_kernel"), partial(Variant, "vote_kernel")
    return [
        stats("bias, softcap", partial(_stats, extras=True), streams=2),
        stats("plain", _stats, streams=1),
        stats("V 50257", partial(_stats, **odd)),
        stats("one row, V 1", partial(_stats, **one)),
        dlogits(f"bf16, {full}", partial(_dlogits, "bf16", True, extras=True), streams=2),
        dlogits("bf16", partial(_dlogits, "bf16", False), streams=1),
        dlogits(f"fp16, {full}", partial(_dlogits, "fp16", True, extras=True), streams=2),
        dlogits("fp32", partial(_dlogits, "fp32", False), streams=1),
        dlogits("bf16, V 50257", partial(_dlogits, "bf16", False, **odd)),
        dlogits("bf16, one row, V 1", partial(_dlogits, "bf16", True, **one)),
        fused(
            f"bf16, {full}, clip, delta, k3, mask",
            partial(_fused, "bf16", token, extras=True),
            streams=4,
        ),
        fused(f"bf16, {full}, given", partial(_fused, "bf16", extras=True), streams=4),
        fused(f"fp16, {full}, given", partial(_fused, "fp16", extras=True), streams=4),
        fused("bf16, given", partial(_fused, "bf16", entropy=False), streams=2),
        fused("bf16, given, V 50257", partial(_fused, "bf16", entropy=False, **odd)),
        fused("bf16, given, one row, V 1", partial(_fused, "bf16", **one)),
        fused("bf16, cispo of whole numbers", partial(_fused, "bf16", whole), streams=2),
        *(
            fused(f"bf16, {name}", partial(_fused, "bf16", objective), streams=2)
            for name, objective in presets.items()
            if objective.ratio != "sequence"
        ),
        tiles("bf16, bias, softcap", partial(_logprob, "bf16", extras=True), tensor=True),
        tiles("bf16", partial(_logprob, "bf16"), tensor=True),
        tiles("fp16, bias, softcap", partial(_logprob, "fp16", extras=True), tensor=True),
        tiles("fp32, bias, softcap", partial(_logprob, "fp32", extras=True)),
        tiles(
            "bf16, unknown GPU",
            partial(_logprob, "bf16", logprob_kernel.SAFE, extras=True),
            tensor=True,
        ),
        tiles("bf16, V 50257", partial(_logprob, "bf16", **odd), tensor=True),
        tiles("bf16, one row, V 1", partial(_logprob, "bf16", **one), tensor=True),
        combine("many tiles", partial(_logprob, "bf16")),
        combine("one row, one tile", partial(_logprob, "bf16", **one)),
        policy("gspo, delta, k3, mask", partial(_policy, sequence)),
        policy("srt, delta, k3, token mask", partial(_policy, token)),
        policy("cispo of whole numbers", partial(_policy, whole)),
        policy("srt, int64 offsets", partial(_policy, presets["srt"], offsets=torch.int64)),
        policy("srt, one token", partial(_policy, presets["srt"], tokens=1)),
        *(policy(name, partial(_policy, objective)) for name, objective in presets.items()),
        group("grpo, fp32", partial(_groups, "grpo", "fp32", torch.int32)),
        group("grpo, bf16, int64 offsets", partial(_groups, "grpo", "bf16", torch.int64)),
        *(
            group(kind, partial(_groups, kind, "fp32", torch.int32))
            for kind in ("mean", "rloo", "batch")
        ),
        vote("fp32 weights, share over valid", partial(_votes, "fp32", torch.int32, False)),
        vote("bf16 weights, int64 offsets", partial(_votes, "bf16", torch.int64, True)),
        vote("no weights", partial(_votes, None, torch.int32, True)),
        *(
            Variant("find_kernel", rule, partial(_answers, rule))
            for rule in ("boxed", "last_number", "tag", "whole")
        ),
        Variant("find_kernel", "one rollout", partial(_answers, "boxed", torch.int64, 1)),
        *(
            Variant(kernel, "int32 offsets", partial(_answers, "boxed"))
            for kernel in ("marks_kernel", "form_kernel")
        ),
        Variant(
            "marks_kernel", "one rollout, int64 offsets", partial(_answers, "boxed", torch.int64, 1)
        ),
        Variant("form_kernel", "one rollout", partial(_answers, "boxed", torch.int64, 1)),
    ]


VARIANTS = _variants()
