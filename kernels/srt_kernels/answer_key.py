r"""From a completion to the key of its final answer: find the answer, bring it to a canonical form, hash the form.

Equal keys are one vote. `read_answer` finds, `canonical_answer` unifies spellings (answer_form.py), `answer_key` hashes,
and `AnswerReader` does the three for a packed batch of token ids on the device that holds it (answer_kernel.py). All of
them are defined over bytes of UTF-8, so that no tokenization of a text changes its key. Finding is
linear in the length of the text, also of degenerate text; the form looks at MAX_BYTES at most.

Left out on purpose: algebra (`x+1` and `1+x` are two answers), nested fractions, order in sets.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import AnyStr

import torch
from torch import Tensor

from .answer_form import DROP, MAX_BYTES, NUMBER, SPACES, Act, Stage, canonical_bytes, hash_bytes
from .byte_table import token_bytes
from .checks import check_offsets, check_range, check_tensor, check_tensors, expect
from .jit import on_its_device, use_triton
from .segments import ranges


def read_answer(text: AnyStr, rule: str) -> AnyStr | None:
    r"""The final answer in `text` as it is written there, stripped; None where there is none or it is empty.

    Of bytes, which need not be UTF-8, it is bytes.

    boxed: the content of the last balanced `\boxed{...}` or `\fbox{...}` (of nested boxes the inner one; `\{` and
    `\}` are no braces). Where there is none, of the last `\boxed x` the text up to the next space or `$`, less
    trailing `.,;:`. A box that is never closed is passed over.
    >>> read_answer(r"so \boxed{\frac{1}{2}}.", "boxed"), read_answer(r"\boxed 7$, or \boxed{8", "boxed")
    ('\\frac{1}{2}', '7')

    tag: the last complete `<answer>...</answer>`.
    >>> read_answer("<answer>1</answer> <answer> 2 </answer> <answer>3", "tag")
    '2'

    last_number: the last decimal number, with thousands separators (`,` `{,}` `,\!`), a following `/digits`, or
    `\frac{digits}{digits}` (with a sign in the numerator; `\frac12` too). A sign belongs to it when it touches it and
    no digit, letter or closing bracket comes right before the sign. Of more than MAX_BYTES characters of numbers in a
    row all are taken.
    >>> [read_answer(t, "last_number") for t in ("3-2", "3 -2", "it is 1,234.5.", "x=-1/2", r"\frac{3}{4}", "none")]
    ['2', '-2', '1,234.5', '-1/2', '\\frac{3}{4}', None]

    whole: all of the text.
    """
    found = (_finder(rule)(_encoded(text), True) or b"").strip(SPACES)
    return (found if isinstance(text, bytes) else _decoded(found)) or None


def canonical_answer(text: str) -> str | None:
    r"""One spelling for the many of an answer; None for an empty one.

    Numbers, alone or between the commas and brackets of a tuple, interval, set or matrix, become a reduced rational:
    >>> [canonical_answer(t) for t in (r"\frac12", r"\dfrac{2}{4}", "0.50", ".5", "3/6", "5e-1", r"$\tfrac 12$.")]
    ['1/2', '1/2', '1/2', '1/2', '1/2', '1/2', '1/2']
    >>> [canonical_answer(t) for t in ("142.0", "025", "-0", "+7", r"1\frac{4}{5}", "3 1/2", r"3.2\times 10^4")]
    ['142', '25', '0', '7', '9/5', '7/2', '32000']
    >>> canonical_answer(r"\left( \dfrac{3}{2}, -13.0 \right]")
    '(3/2,-13]'
    >>> canonical_answer(r"\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}")
    '\\begin{pmatrix}1/2\\\\2\\end{pmatrix}'

    A comma separates thousands only where it cannot be a list's: three digits after it, no space, no bracket anywhere;
    `{,}`, `,\!` and `\,` before three digits always do. A list without brackets keeps a space after its commas.
    >>> [canonical_answer(t) for t in ("2,220", "2{,}220", r"11,\! 111,\! 100", "(2,220)", "2, 220", "3,5,7")]
    ['2220', '2220', '11111100', '(2,220)', '2, 220', '3, 5, 7']

    Typography, wrappers, currency, percent, degrees and units after a number go; words are lower-cased, letters not:
    >>> [canonical_answer(t) for t in (r"\text{ East }", r"\$18.90", r"50\%", r"30^{\circ}", r"15\mbox{ cm}^2")]
    ['east', '189/10', '50', '30', '15']
    >>> [canonical_answer(t) for t in ("(C)", "3R^2", r"11\sqrt2", r"2 \pi r", "4210_5", "$ $")]
    ['C', '3R^{2}', '11\\sqrt{2}', '2\\pi r', '4210_{5}', None]

    A leading `x =` or `x \in` goes where there is no other `=`:
    >>> [canonical_answer(t) for t in ("x = 5", r"x \in [-2,7]", "y = 2x+3", "x=1, y=2")]
    ['5', '[-2,7]', '2x+3', 'x=1, y=2']

    What is beyond a rational with numerator and denominator below 10^18 keeps its normalised text. What is longer than
    MAX_BYTES or has braces that do not match keeps its own text, after `\verb `.
    >>> canonical_answer("1e999999999"), canonical_answer(r"\frac{1}{0}"), canonical_answer(r"\sqrt{ 5")
    ('1e999999999', '\\frac{1}{0}', '\\verb \\sqrt{ 5')
    """
    form = canonical_bytes(_encoded(text))
    return None if form is None else _decoded(form)


def answer_key(text: str | bytes | None) -> int:
    """Signed 64-bit hash of the canonical form, the same on every device, version and run; 0 means no answer.

    >>> answer_key(r"\\frac12") == answer_key("0.5") != answer_key("2"), answer_key(None), answer_key(" ")
    (True, 0, 0)
    """
    form = None if text is None else canonical_bytes(_encoded(text))
    return 0 if form is None else hash_bytes(form)


def _encoded(text: str | bytes) -> bytes:
    expect(isinstance(text, (str, bytes)), "text", "str or bytes", type(text).__name__)
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # of byte tokens; two answers stay two
        return data.decode("utf-8", "backslashreplace")


# ---- finding the answer in bytes ----
# finder(data, complete) -> the answer's bytes, or None. Unless complete, data is the end of a text, and None may also
# mean that there is too little of it.

_BOX = re.compile(rb"\\(?:boxed|fbox)(?![A-Za-z])(?:[\x00-\x20]*(?P<brace>\{)|(?P<space>[\x00-\x20]+))?")
_BRACES = re.compile(rb"\\.|[{}]", re.DOTALL)
_BARE_TOKEN = re.compile(rb"(?:[^\x00-\x20$\\]|\\[^\x00-\x20)\]])+")
BARE_END = b".,;:"  # no part of a bare token's end


def _last_box(data: bytes, complete: bool) -> bytes | None:
    boxes = list(_BOX.finditer(data))
    if not boxes:
        return None
    closing, opened = {}, []
    for brace in _BRACES.finditer(data, boxes[0].start()):
        if brace[0] == b"{":
            opened.append(brace.start())
        elif brace[0] == b"}" and opened:
            closing[opened.pop()] = brace.start()
    bare = None
    for box in reversed(boxes):
        start = box.end()
        if start - 1 in closing:
            return data[start : closing[start - 1]]
        if bare is None and box["space"]:
            bare = _BARE_TOKEN.match(data, start)
    return bare[0].rstrip(BARE_END) if bare and complete else None


def _last_tag(data: bytes, complete: bool) -> bytes | None:
    start = data.rfind(b"<answer>", 0, max(data.rfind(b"</answer>"), 0))
    if start < 0:
        return None
    start += len(b"<answer>")
    return data[start : data.index(b"</answer>", start)]


_DIGITS = b"0123456789"
_NO_DIGITS = bytes(set(range(256)) - set(_DIGITS))
_NUMBER_BYTES = _DIGITS + b".,/{}\\!+-dfrtac" + "−–".encode()  # that a number in a text can have
_GROUPS = "[1-9][0-9]?[0-9]?((,|{,}|,\\\\!)[0-9][0-9][0-9])+"
_UNSIGNED = rf"(({_GROUPS}|[0-9]+)(\.[0-9]+)?(/[0-9]+)?|\.[0-9]+|\\[dt]?frac({{[+-]?[0-9]+}}{{[0-9]+}}|[0-9][0-9]))"


@cache
def numbers_in_text() -> Stage:
    """Its act has the body NUMBER for a number. Its state: whether what came before can have no sign after it."""

    def act(after_value: bool, kind: str) -> Act:
        if kind == "number" or kind == "signed" and not after_value:
            return Act((True,), NUMBER)
        return Act((kind in ("value", "not grouped"),), DROP, take=1)

    kinds = [("number", _UNSIGNED, 0), ("signed", f"([-+]|−|–){_UNSIGNED}", 0), ("not grouped", f"{_GROUPS}[0-9]", 0)]
    return Stage([*kinds, ("value", r"[0-9A-Za-z)\]}]", 0), ("other", ".", 0), ("end", "$", 0)], [(False,), (True,)], act)


def _last_number(data: bytes, complete: bool) -> bytes | None:
    end = len(data.rstrip(_NO_DIGITS))
    start = len(data[:end].rstrip(_NUMBER_BYTES))
    if start == end or start == 0 and not complete:
        return None
    if end - start > MAX_BYTES:
        return data[start:end]
    # From the byte before, which decides about a sign, to the one after, which may close a \frac{1}{2}.
    window = data[max(start - 1, 0) : end + 1]
    return [match for act, match in numbers_in_text().walk(window, (False,)) if act.body == NUMBER][-1]


_FINDERS = {"boxed": _last_box, "tag": _last_tag, "last_number": _last_number, "whole": lambda data, complete: data}
RULES = tuple(_FINDERS)


def _finder(rule: str) -> Callable[[bytes, bool], bytes | None]:
    if rule not in _FINDERS:
        raise ValueError(f"answer rule: expected one of {', '.join(RULES)}, got {rule!r}")
    return _FINDERS[rule]


# ---- a packed batch of completions ----

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
        for before, after in ((token[:at], token[at + 1 :]) for at, byte in enumerate(token) if byte == ord("x")):
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


SLICE = 1 << 20  # tokens: memory of this size is used again, where that of a whole batch is new pages each time


def _marks(tokens: Tensor, hints: Tensor) -> Tensor:
    """Positions of the tokens whose hints say so, in order."""
    found_in = [tokens.new_empty(0)]
    for part in ranges(len(tokens), SLICE):
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


def _answers(tokens: Tensor, cu_seqlens: Tensor, blob: Tensor, offsets: Tensor, hints: Tensor, rule: str) -> Iterator[bytes]:
    """The answers as they are written, stripped; b"" for none. Looks at the text around the last mark, then farther."""
    finder, table, beyond = _finder(rule), _table(blob, offsets), len(hints) - 1

    def text(first: int, last: int) -> bytes:
        return b"".join(map(table.__getitem__, tokens[first:last].clamp(max=beyond).tolist()))

    marks = _marks(tokens, hints)
    last_marks = torch.cat([marks.new_full((1,), -1), marks])[torch.searchsorted(marks, cu_seqlens[1:].long())]
    for start, end, mark in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), last_marks.tolist(), strict=True):
        found, width = None, 16
        while found is None and mark >= start:
            first = start if rule == "whole" else max(start, mark - width)
            found = finder(text(first, end if rule != "last_number" else min(end, mark + 16)), first == start)
            if first == start:
                break
            width *= 16
        yield (found or b"").strip(SPACES)


@torch.library.custom_op(
    "srt_kernels::answer_keys", mutates_args=(),
    schema="(Tensor tokens, Tensor cu_seqlens, Tensor blob, Tensor offsets, Tensor hints, str rule) -> Tensor",
)  # fmt: skip
@on_its_device
def _answer_keys(tokens, cu_seqlens, blob, offsets, hints, rule):
    _check(tokens, cu_seqlens)
    if use_triton(tokens):
        from .answer_kernel import answer_keys

        return answer_keys(tokens, cu_seqlens, blob, offsets, hints, rule)
    keys = [answer_key(answer) for answer in _answers(tokens, cu_seqlens, blob, offsets, hints, rule)]
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
        other = next((type(token).__name__ for token in table if not isinstance(token, bytes)), None)
        expect(other is None, "tokenizer", "a tokenizer or a list of bytes", f"a list with {other}")
        self.rule = rule
        table = [*table, b""]  # the last: of ids beyond, which a model with a padded vocabulary may have
        offsets = [0, *itertools.accumulate(map(len, table))]
        tensors = (
            torch.frombuffer(bytearray(b"".join(table)) or bytearray(1), dtype=torch.uint8),
            torch.tensor(offsets, dtype=torch.int32, device="cpu"),  # whatever the default device is
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
