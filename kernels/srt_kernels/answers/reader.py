"""TODO."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from srt_kernels.answers.canonical import SPACES
from srt_kernels.answers.extract import _decoded, _finder, answer_key
from srt_kernels.answers.token_bytes import token_bytes
from srt_kernels.core.backend import on_device_of_tensors, use_triton
from srt_kernels.core.checks import check_offsets, check_range, check_tensor, check_tensors, expect
from srt_kernels.core.segments import chunk_slices

YES, MAYBE, BEFORE = 1, 2, 4  # bits of a hint; above them a number of bytes


_ENDS_OF_BOX = re.compile(rb"(?:d|ed|xed|oxed|boxed|x|ox|box|fbox)(?![A-Za-z])")


_IN_TAGS = (b"/answer", b"answer")


def _hint(token: bytes, rule: str) -> int:
    r"""Whether `token` can hold what an answer's place is known by: the x of `\boxed`, the last > of `</answer>`, a digit.

    boxed: YES, or MAYBE where the token begins inside the command; BEFORE where the token before such a one ends so.
    Above these bits, how many of the token's first bytes a search from the end of the text has to read: the others
    change nothing about braces and are no part of a command.
    """
    read = len(token)
    if rule == "boxed":
        hint = BEFORE if token[-1:] in b"\\bof" else 0  # also where it is empty
        for before, after in (
            (token[:at], token[at + 1 :]) for at, byte in enumerate(token) if byte == ord("x")
        ):
            for head, tail in ((b"\\bo", b"ed"), (b"\\fbo", b"")):
                if after.startswith(tail) or tail.startswith(after):
                    hint |= YES * before.endswith(head) | MAYBE * head.endswith(before)
        if not re.search(rb"[\\{}]", token) and not _ENDS_OF_BOX.match(token):
            read = min(read, len(token) - len(token.lstrip(SPACES)) + 1)
    elif rule == "tag":
        hint = YES * (b">" in token)
        read *= bool(re.search(b"[<>]", token)) or any(token in name for name in _IN_TAGS)
    else:
        hint = YES * (rule == "whole" or re.search(b"[0-9]", token) is not None)
        read *= hint
    return hint | read << 3


SLICE = (
    1 << 20
)  # tokens: memory of this size is used again, where that of a whole batch is new pages each time


def _marks(tokens: Tensor, hints: Tensor) -> Tensor:
    """Positions of the tokens whose hints say so, in order."""
    found_in = [tokens.new_empty(0)]
    for part in chunk_slices(len(tokens), SLICE):
        first = max(part.start - 1, 0)  # with the token before
        found = hints.index_select(0, tokens[first : part.stop].clamp(max=len(hints) - 1))
        marks = (found & (YES | MAYBE)).nonzero().squeeze(1)
        likely = (found[marks] & YES > 0) | (found[(marks - 1).clamp(min=0)] & BEFORE > 0)
        found_in.append(marks[likely & (marks >= part.start - first)] + first)
    return torch.cat(found_in)


@lru_cache(maxsize=16)
def _table(blob: Tensor, offsets: Tensor) -> list[bytes]:
    """The bytes of each token again, of tensors that are never written."""
    data, bounds = blob.numpy().tobytes(), offsets.tolist()
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def _answers(
    tokens: Tensor, cu_seqlens: Tensor, blob: Tensor, offsets: Tensor, hints: Tensor, rule: str
) -> Iterator[bytes]:
    """The answers as they are written, stripped; b"" for none. Looks at the text around the last mark, then farther."""
    finder, table, beyond = _finder(rule), _table(blob, offsets), len(hints) - 1

    def text(first: int, last: int) -> bytes:
        return b"".join(map(table.__getitem__, tokens[first:last].clamp(max=beyond).tolist()))

    marks = _marks(tokens, hints)
    last_marks = torch.cat([marks.new_full((1,), -1), marks])[
        torch.searchsorted(marks, cu_seqlens[1:].long())
    ]
    for start, end, mark in zip(
        cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), last_marks.tolist(), strict=True
    ):
        found, width = None, 16
        while found is None and mark >= start:
            first = start if rule == "whole" else max(start, mark - width)
            found = finder(
                text(first, end if rule != "last_number" else min(end, mark + 16)), first == start
            )
            if first == start:
                break
            width *= 16
        yield (found or b"").strip(SPACES)


@torch.library.custom_op(
    "srt_kernels::answer_keys",
    mutates_args=(),
    schema="(Tensor tokens, Tensor cu_seqlens, Tensor blob, Tensor offsets, Tensor hints, str rule) -> Tensor",
)
@on_device_of_tensors
def _answer_keys(tokens, cu_seqlens, blob, offsets, hints, rule):
    _check(tokens, cu_seqlens)
    if use_triton(tokens):
        from srt_kernels.answers.kernel import answer_keys

        return answer_keys(tokens, cu_seqlens, blob, offsets, hints, rule)
    keys = [
        answer_key(answer) for answer in _answers(tokens, cu_seqlens, blob, offsets, hints, rule)
    ]
    return torch.tensor(keys, dtype=torch.int64, device=tokens.device)


@_answer_keys.register_fake
def _(tokens, cu_seqlens, blob, offsets, hints, rule):
    return tokens.new_empty(len(cu_seqlens) - 1)


class AnswerReader:
    """Reads the final answers of packed completions.

    tokenizer: a Hugging Face tokenizer that token_bytes takes, or the bytes of each token id; rule: see read_answer.
    """

    def __init__(self, tokenizer, rule: str):
        _finder(rule)
        table = tokenizer if isinstance(tokenizer, list) else token_bytes(tokenizer)
        other = next(
            (type(token).__name__ for token in table if not isinstance(token, bytes)), None
        )
        expect(other is None, "tokenizer", "a tokenizer or a list of bytes", f"a list with {other}")
        self.rule = rule
        table = [
            *table,
            b"",
        ]  # the last: of ids beyond, which a model with a padded vocabulary may have
        offsets = [0, *itertools.accumulate(map(len, table))]
        tensors = (
            torch.frombuffer(bytearray(b"".join(table)) or bytearray(1), dtype=torch.uint8),
            torch.tensor(
                offsets, dtype=torch.int32, device="cpu"
            ),  # whatever the default device is
            torch.tensor([_hint(token, rule) for token in table], dtype=torch.int32, device="cpu"),
        )
        self._copies = {torch.device("cpu"): tensors}

    def _tables(self, device: torch.device) -> tuple[Tensor, ...]:
        """blob, offsets, hints on a device, copied there once."""
        if device not in self._copies:
            copies = tuple(tensor.to(device) for tensor in self._copies[torch.device("cpu")])
            if any(type(copy) is not Tensor for copy in copies):  # of a fake device
                return copies
            self._copies[device] = copies
        return self._copies[device]

    def read(self, tokens: Tensor, cu_seqlens: Tensor) -> list[str | None]:
        """The answers as texts, on the host. tokens [N] int64, cu_seqlens [R+1]; R answers, None where there is none."""
        check_tensors(tokens=tokens, cu_seqlens=cu_seqlens)
        _check(tokens, cu_seqlens)
        tokens, cu_seqlens = tokens.cpu(), cu_seqlens.cpu()
        answers = _answers(tokens, cu_seqlens, *self._tables(tokens.device), self.rule)
        return [_decoded(answer) or None for answer in answers]

    def keys(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The answers' keys [R] int64 on the device of `tokens`, 0 where there is no answer; see answer_key.

        tokens [N] int64, cu_seqlens [R+1] int32 or int64. No host sync off a CPU, but for the
        first call on a device, which copies the tables there. Raises ValueError for a bad shape, dtype, device or offset.
        """
        check_tensors(tokens=tokens, cu_seqlens=cu_seqlens)
        return _answer_keys(tokens, cu_seqlens, *self._tables(tokens.device), self.rule)


def _check(tokens: Tensor, cu_seqlens: Tensor) -> None:
    check_tensor("tokens", tokens, (None,), (torch.int64,), tokens.device)
    check_range("tokens", tokens, 2**31)
    check_offsets("cu_seqlens", cu_seqlens, len(tokens), tokens.device)
