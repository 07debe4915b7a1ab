"""Packed batches with logits like a language model's, and comparisons. For tests and benches."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from srt_kernels.lm_head.linear_logprob import linear_logprob

OFFSET = 30.0  # common part of the logits
SPREAD = 5.0  # standard deviation of the logits over the temperature
ROWS_AT_A_TIME = 256  # of logits, so that benches have room for them


@dataclass(frozen=True, kw_only=True)
class PackedRollouts:
    """Arguments of linear_policy_loss. M hidden rows, N tokens, R rollouts.

    Logits reach 30 to 50 (or the softcap). Entropies are 0.1 to 2 nats. Targets are sampled.
    """

    hidden: Tensor  # [M, H]
    weight: Tensor  # [V, H]
    bias: Tensor  # [V]
    targets: Tensor  # [N] int64
    row_index: Tensor  # [N] int64; if shared, some targets share a row and some rows have none
    advantages: Tensor  # [R] fp32, every third 0
    cu_seqlens: Tensor  # [R+1] int32
    old_logprobs: Tensor  # [N] the head's with noise: ratios lie on both sides of both clips
    ref_logprobs: Tensor  # [N] the head's with noise
    sampler_logprobs: Tensor  # [N] the head's with noise


def random_tokens(
    texts: list[bytes], table: list[bytes], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Cut each text at random into entries of `table`.

    table has each byte and ends with an empty entry, which stands between the others here and
    there. Returns tokens [N] int64 and cu_seqlens [R+1] int32."""
    ids = {entry: token for token, entry in enumerate(table)}
    longest = max(map(len, table))
    tokens: list[int] = []
    offsets = [0]
    for text in texts:
        position = 0
        while position < len(text):
            size = rng.randint(1, longest)
            while (token := ids.get(text[position : position + size])) is None:
                size -= 1
            tokens += [token] if rng.random() < 0.9 else [len(table) - 1, token]
            position += len(table[token])
        offsets.append(len(tokens))
    return torch.tensor(tokens, dtype=torch.int64), torch.tensor(offsets, dtype=torch.int32)


def packed_rollouts(
    lengths: list[int],
    *,
    hidden_size: int = 48,
    vocab_size: int = 331,
    shared: bool = False,
    with_bias: bool = True,
    temperature: float = 1.0,
    softcap: float | None = None,
    noise: float = 0.3,
    seed: int = 0,
) -> PackedRollouts:
    """Rollouts of `lengths` tokens, in fp32 on the default device.

    N = sum(lengths). M = N, of which fewer rows are used if shared. Random numbers are drawn on the
    CPU: batches differ between devices only by the rounding of the head.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    device = torch.get_default_device()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").to(device)

    total = sum(lengths)
    spread = SPREAD * temperature  # so that the temperature leaves entropies as they are
    # Under a softcap most logits are where it bends, and few where it is flat.
    offset = OFFSET if softcap is None else softcap / 3
    hidden = normal(total, hidden_size)
    weight = normal(vocab_size, hidden_size) * spread / (hidden_size - 1) ** 0.5
    hidden[:, -1] = offset**0.5
    weight[:, -1] = offset**0.5
    bias = normal(vocab_size) if with_bias else torch.zeros(vocab_size)
    row_index = torch.arange(total)
    if shared and total:
        row_index = torch.randint(total, (total,), generator=generator, device="cpu").to(device)
    targets = _sample_targets(hidden[row_index], weight, bias, softcap, temperature, generator)
    logprobs, _ = linear_logprob(
        hidden,
        weight,
        targets,
        temperature=temperature,
        softcap=softcap,
        bias=bias,
        row_index=row_index,
    )
    old_logprobs = logprobs + noise * normal(total)
    ref_logprobs = logprobs + noise * normal(total)
    sampler_logprobs = logprobs + noise * normal(total)
    advantages = normal(len(lengths))
    advantages[2::3] = 0
    return PackedRollouts(
        hidden=hidden,
        weight=weight,
        bias=bias,
        targets=targets,
        row_index=row_index,
        advantages=advantages,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs,
    )


def _sample_targets(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    softcap: float | None,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """[N] int64, drawn from the distributions of hidden rows [N, H]."""
    targets = torch.empty(len(rows), dtype=torch.int64)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        logits = rows[part] @ weight.T + bias
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        probs = (logits / temperature).softmax(-1).cpu()
        targets[part] = torch.multinomial(probs, 1, generator=generator).squeeze(1)
    return targets


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| in fp64. If expected is zero, ||actual - expected||."""
    error = (actual.double() - expected.double()).norm().item()
    size = expected.double().norm().item()
    return error / size if size > 0 else error


def assert_close(
    name: str,
    actual: Tensor,
    expected: Tensor,
    *,
    atol: float | None = None,
    rtol: float | None = None,
) -> None:
    """Assert that the largest absolute difference is at most atol, and relative_error at most rtol.

    Each only if given. nan is allowed only where expected has it.
    """
    assert actual.shape == expected.shape, (
        f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    )
    has_same_nan = torch.equal(actual.isnan(), expected.isnan())
    assert has_same_nan, f"{name}: nan in other places than expected"
    actual = actual.double().nan_to_num()
    expected = expected.double().nan_to_num()
    if atol is not None and actual.numel():
        worst = (actual - expected).abs().max().item()
        assert worst <= atol, f"{name}: off by {worst:.3g}, allowed {atol:.3g}"
    if rtol is not None:
        error = relative_error(actual, expected)
        assert error <= rtol, f"{name}: relative error {error:.3g}, allowed {rtol:.3g}"
