"""Token ids of packed completions -> their final answers, or the 64-bit keys of these on the device
of the tokens.

PyTorch finds the marks of answers (finding/hints.py) in all tokens at once. Plain Python then reads
the text from the last ones on. On a GPU Triton does both (kernel/).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import check_rule, find_answer
from srt_kernels.answers.finding.hints import (
    BITS,
    HAS,
    INNER,
    MAY,
    NEARBY,
    RUN_ON,
    STARTS,
    THINK,
    TOP,
    Marks,
    first_places,
    token_hints,
)
from srt_kernels.answers.token_bytes import token_bytes
from srt_kernels.answers.utf8 import to_text
from srt_kernels.core.backend import on_device_of_tensors, use_triton
from srt_kernels.core.checks import check_offsets, check_range, check_tensor, check_tensors, expect
from srt_kernels.core.segments import chunk_slices

SLICE = 1 << 20
"""Tokens that are looked at together.

Their buffers are used again; those of a whole batch would be new pages each time.
"""

CPU = torch.device("cpu")


class VocabularyTables(NamedTuple):
    """Bytes and hints of V token ids, and then of one more: an id beyond the vocabulary, which has
    no bytes.

    A model with a padded vocabulary may sample such ids.
    """

    blob: Tensor  # uint8: the bytes of all tokens back to back
    offsets: Tensor  # [V+2] int32: where the bytes of a token begin
    hints: Tensor  # [V+1] int32: see finding/hints.py


class AnswerReader:
    """Reads the final answers of packed completions.

    tokenizer: a Hugging Face tokenizer that token_bytes takes, or a list with the bytes of each
    token id. rule: where a completion's answer is, one of ANSWER_RULES; see extract.read_answer.
    Raises ValueError for an unknown rule or tokenizer.
    """

    def __init__(self, tokenizer: Any, rule: str):
        check_rule(rule)
        table = tokenizer if isinstance(tokenizer, list) else token_bytes(tokenizer)
        others = ", ".join(
            {type(token).__name__ for token in table if not isinstance(token, bytes)}
        )
        expect(not others, "tokenizer", "a tokenizer or a list of bytes", f"a list with {others}")
        self.rule = rule
        self._copies = {CPU: _vocabulary_tables([*table, b""], rule)}

    def tables(self, device: torch.device) -> VocabularyTables:
        """The tables on a device. They are copied there once."""
        if device not in self._copies:
            copies = VocabularyTables(*(tensor.to(device) for tensor in self._copies[CPU]))
            if any(type(copy) is not Tensor for copy in copies):  # a fake device: nothing to keep
                return copies
            self._copies[device] = copies
        return self._copies[device]

    def read(self, tokens: Tensor, cu_seqlens: Tensor) -> list[str | None]:
        """The answers [R] as texts on the host; None where there is no answer.

        tokens [N] int64, cu_seqlens [R+1] int32 or int64. Raises ValueError as `keys` does.
        """
        check_tensors(tokens=tokens, cu_seqlens=cu_seqlens)
        _check(tokens, cu_seqlens)
        answers = find_answers(tokens.cpu(), cu_seqlens.cpu(), self.tables(CPU), self.rule)
        return [to_text(answer) or None for answer in answers]

    def keys(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The keys [R] int64 of the answers, on the device of `tokens`; 0 where there is no answer.

        A key is canonical.answer_key of the answer. tokens [N] int64, cu_seqlens [R+1] int32 or
        int64. Synchronises with the host only for CPU tensors, and for the first call on a device,
        which copies the tables. Raises ValueError for a bad shape, dtype, device or offset.
        """
        check_tensors(tokens=tokens, cu_seqlens=cu_seqlens)
        return _answer_keys(tokens, cu_seqlens, *self.tables(tokens.device), self.rule)


def find_answers(
    tokens: Tensor, cu_seqlens: Tensor, tables: VocabularyTables, rule: str
) -> Iterator[bytes]:
    """The answers of CPU tensors as they are written, stripped; b"" where there is none.

    It reads the end of a rollout first, and then more of it.
    """
    token_texts = _token_texts(tables.blob, tables.offsets)
    last_id = len(tables.hints) - 1
    if len(tokens) and int(tokens.max()) > last_id:
        tokens = tokens.clamp(max=last_id)
    ids = tokens.numpy()
    marks = itertools.starmap(Marks, rollout_marks(tokens, cu_seqlens, tables.hints).tolist())
    bounds = itertools.pairwise(cu_seqlens.tolist())
    for (start, stop), mark in zip(bounds, marks, strict=True):
        answer = None
        for first, is_complete in first_places(start, stop, mark, rule):
            texts = list(map(token_texts.__getitem__, ids[first:stop].tolist()))
            if is_complete and first > start and b"" in texts[:NEARBY]:
                # The word of the first mark may begin before these tokens.
                texts = list(map(token_texts.__getitem__, ids[start:stop].tolist()))
            may_think = mark.think >= start
            data = b"".join(texts)
            answer = find_answer(data, rule, is_complete=is_complete, may_think=may_think)
            if answer is not None:
                break
        yield answer or b""


def rollout_marks(tokens: Tensor, cu_seqlens: Tensor, hints: Tensor) -> Tensor:
    """[R, 4] int64 the Marks of each rollout. They may lie in another rollout, or be -1 or N."""
    kinds = (THINK, RUN_ON, TOP)
    found: list[list[Tensor]] = [[tokens.new_full((1,), -1)] for _ in kinds]
    may_be_any = sum((HAS | MAY) << BITS * kind for kind in kinds)
    for part in chunk_slices(len(tokens), SLICE):
        first = max(part.start - 2, 0)  # with the two tokens before the part
        part_hints = hints.index_select(0, tokens[first : part.stop])
        places = (part_hints & may_be_any).nonzero().squeeze(1)
        places = places[places >= part.start - first]
        here, before, second = (part_hints[(places - i).clamp(min=0)] for i in range(3))
        for kind, positions in zip(kinds, found, strict=True):
            shift = BITS * kind
            starts = before & STARTS << shift > 0
            inner = (before & INNER << shift > 0) & (second & (STARTS | INNER) << shift > 0)
            has = (here & HAS << shift > 0) | (here & MAY << shift > 0) & (starts | inner)
            positions.append(places[has] + first)
    bounds = cu_seqlens.long()
    places = [torch.cat([*positions, tokens.new_full((1,), len(tokens))]) for positions in found]
    columns = [column[torch.searchsorted(column[1:], bounds[1:])] for column in places]
    columns.append(places[TOP][1:][torch.searchsorted(places[TOP][1:], bounds[:-1])])
    return torch.stack(columns, 1)


@lru_cache(maxsize=16)
def _token_texts(blob: Tensor, offsets: Tensor) -> list[bytes]:
    """The bytes of each token, from tensors that are never written to."""
    data = blob.numpy().tobytes()
    return [data[start:end] for start, end in itertools.pairwise(offsets.tolist())]


def _vocabulary_tables(table: list[bytes], rule: str) -> VocabularyTables:
    """On the CPU, whatever the default device is."""
    blob = bytearray(b"".join(table)) or bytearray(1)
    offsets = [0, *itertools.accumulate(map(len, table))]
    hints = token_hints(table, rule)
    return VocabularyTables(
        blob=torch.frombuffer(blob, dtype=torch.uint8),
        offsets=torch.tensor(offsets, dtype=torch.int32, device=CPU),
        hints=torch.tensor(hints, dtype=torch.int32, device=CPU),
    )


def _check(tokens: Tensor, cu_seqlens: Tensor) -> None:
    check_tensor("tokens", tokens, (None,), (torch.int64,), tokens.device)
    check_range("tokens", tokens, 2**31)
    check_offsets("cu_seqlens", cu_seqlens, len(tokens), tokens.device)


@torch.library.custom_op(
    "srt_kernels::answer_keys",
    mutates_args=(),
    schema="(Tensor tokens, Tensor cu_seqlens, Tensor blob, Tensor offsets, Tensor hints, str rule)"
    " -> Tensor",
)
@on_device_of_tensors
def _answer_keys(
    tokens: Tensor, cu_seqlens: Tensor, blob: Tensor, offsets: Tensor, hints: Tensor, rule: str
) -> Tensor:
    _check(tokens, cu_seqlens)
    if use_triton(tokens):
        # Triton is not installed on every machine with a CPU only.
        from srt_kernels.answers.kernel.keys import answer_keys

        return answer_keys(tokens, cu_seqlens, blob, offsets, hints, rule)
    answers = find_answers(tokens, cu_seqlens, VocabularyTables(blob, offsets, hints), rule)
    keys = [answer_key(answer) for answer in answers]
    return torch.tensor(keys, dtype=torch.int64, device=tokens.device)


@_answer_keys.register_fake
def _(
    tokens: Tensor, cu_seqlens: Tensor, blob: Tensor, offsets: Tensor, hints: Tensor, rule: str
) -> Tensor:
    return tokens.new_empty(len(cu_seqlens) - 1)
