"""Triton: token ids -> keys of the answers.

A lane reads one rollout. The lanes of a program step together, byte by byte. Three kernels run:
marks_kernel and find_kernel (find.py), then form_kernel: the stages of the canonical form, and the
hash of the form.
"""

# The types of jit functions are not those of their calls.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from srt_kernels.answers.kernel import constants as const
from srt_kernels.answers.kernel.find import find_kernel, marks_kernel
from srt_kernels.answers.kernel.finder_tables import finder_tables, no_tables
from srt_kernels.answers.kernel.lanes import any_lane
from srt_kernels.answers.kernel.tables import stage_tables
from srt_kernels.answers.kernel.walk import Tables, walk
from srt_kernels.core.backend import LAUNCH_OPTIONS

LANES = 32
MARK_BLOCK = 512
MARK_WARPS = 4
MARK_ARGUMENTS = ("think_ptr", "run_on_ptr", "top_ptr")


@triton.jit
def form_kernel(
    raw_ptr,
    size_ptr,
    hash_ptr,
    word_ptr,
    header_ptr,
    power_ptr,
    buffer_ptr,
    key_ptr,
    rollouts,
    LANES: tl.constexpr,
):
    """key [R] of the answers in raw [R, ROW]. buffer [2, R, ROW] is scratch."""
    tables = Tables(word_ptr, header_ptr, power_ptr)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    active = lane < rollouts
    size = tl.load(size_ptr + lane, mask=active, other=0)
    row = lane.to(tl.int64) * const.ROW
    empty = active & (size == 0)
    fits = active & (size > 0) & (size <= const.MAX_BYTES)
    size = tl.where(fits, size, 0)
    state = size * 0
    source = raw_ptr + row
    target = buffer_ptr + row
    spare = buffer_ptr + (row * 0 + rollouts) * const.ROW + row
    for stage in range(const.STAGES):
        size, last_state = walk(tables, stage, source, target, size, state, fits)
        state = tl.where(fits, last_state, 0)
        fits = fits & (size >= 0)
        empty = empty | (fits & (stage == const.EMPTY_AFTER) & (size == 0))
        tl.debug_barrier()  # Another thread may have written what a lane reads in the next stage.
        source, target, spare = target, spare, target
    form_hash = hash_form(source, size, fits)
    own_text_hash = tl.load(hash_ptr + lane, mask=active, other=0)
    key = finish_hash(tl.where(fits & (size > 0), form_hash, own_text_hash))
    tl.store(key_ptr + lane, tl.where(empty, 0, key), mask=active)


@triton.jit
def hash_form(source, size, active):
    """FNV-1a of the first `size` bytes at `source`."""
    value = size.to(tl.int64) * 0 + const.BASIS
    i = size * 0
    while any_lane(active & (i < size)):
        reads = active & (i < size)
        char = tl.load(source + i, mask=reads, other=0).to(tl.int64)
        value = tl.where(reads, (value ^ char) * const.PRIME, value)
        i += 1
    return value


@triton.jit
def finish_hash(value):
    """The finaliser of MurmurHash3; never 0."""
    value = (value ^ ((value >> 33) & 0x7FFFFFFF)) * const.MIX_1
    value = (value ^ ((value >> 33) & 0x7FFFFFFF)) * const.MIX_2
    value = value ^ ((value >> 33) & 0x7FFFFFFF)
    return tl.where(value == 0, 1, value)


def answer_keys(
    tokens: Tensor, cu_seqlens: Tensor, blob: Tensor, offsets: Tensor, hints: Tensor, rule: str
) -> Tensor:
    """Keys [R] int64 of the answers of packed completions.

    tokens [N] int64, cu_seqlens [R+1]; blob, offsets, hints: see reader.VocabularyTables.
    """
    rollouts = len(cu_seqlens) - 1
    device = tokens.device
    keys = torch.empty(rollouts, dtype=torch.int64, device=device)
    if rollouts == 0:
        return keys
    tokens = tokens.contiguous()
    cu_seqlens = cu_seqlens.contiguous()
    marks = [torch.empty_like(keys) for _ in MARK_ARGUMENTS]
    hashes = torch.empty_like(keys)
    sizes = torch.empty(rollouts, dtype=torch.int32, device=device)
    raw = torch.empty(rollouts, const.ROW.value, dtype=torch.uint8, device=device)
    buffer = torch.empty(2, rollouts, const.ROW.value, dtype=torch.uint8, device=device)
    tables = stage_tables(device)
    programs = (triton.cdiv(rollouts, LANES),)
    mark_pointers = dict(zip(MARK_ARGUMENTS, marks, strict=True))
    finder = no_tables(device) if rule == "whole" else finder_tables(device, rule)
    if rule != "whole":
        marks_kernel[(rollouts,)](
            token_ptr=tokens,
            bound_ptr=cu_seqlens,
            hint_ptr=hints,
            **mark_pointers,
            vocab=len(hints),
            BLOCK=MARK_BLOCK,
            num_warps=MARK_WARPS,
            **LAUNCH_OPTIONS,
        )
    find_kernel[programs](
        token_ptr=tokens,
        bound_ptr=cu_seqlens,
        **mark_pointers,
        blob_ptr=blob,
        offset_ptr=offsets,
        word_ptr=finder.words,
        header_ptr=finder.header,
        raw_ptr=raw,
        size_ptr=sizes,
        hash_ptr=hashes,
        rollouts=rollouts,
        vocab=len(hints),
        RULE=rule,
        LANES=LANES,
        num_warps=1,
        **LAUNCH_OPTIONS,
    )
    form_kernel[programs](
        raw_ptr=raw,
        size_ptr=sizes,
        hash_ptr=hashes,
        word_ptr=tables.words,
        header_ptr=tables.headers,
        power_ptr=tables.powers,
        buffer_ptr=buffer,
        key_ptr=keys,
        rollouts=rollouts,
        LANES=LANES,
        num_warps=1,
        **LAUNCH_OPTIONS,
    )
    return keys
