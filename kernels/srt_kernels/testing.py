"""Packed batches with logits like a language model's, and comparisons. For tests and benches."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from srt_kernels.lm_head.linear_logprob import linear_logprob

OFFSET, SPREAD = (
    30.0,
    5.0,
)  # common part of the logits; their standard deviation over the temperature


@dataclass(frozen=True, kw_only=True)
class PackedRollouts:
    """Arguments of linear_policy_loss: logits up to 30-50 (or the softcap), 0.1-2 nats of entropy, targets sampled."""

    hidden: Tensor  # [M, H]
    weight: Tensor  # [V, H]
    bias: Tensor  # [V]
    targets: Tensor  # [N] int64
    row_index: Tensor  # [N] int64: with shared=True some targets share a hidden row, and some rows have none
    advantages: Tensor  # [R] fp32, every third 0
    cu_seqlens: Tensor  # [R+1] int32
    old_logprobs: Tensor  # [N]: the head's own log-probs with noise, so that ratios lie on both sides of both clips
    ref_logprobs: Tensor  # [N]
    sampler_logprobs: Tensor  # [N]


def random_tokens(
    texts: list[bytes], table: list[bytes], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Tokens [N] int64 and cu_seqlens [R+1] int32 of a random cut of each text into entries of table, which has each
    byte and ends with an empty entry: it stands between the others here and there."""
    ids, longest, tokens, offsets = (
        {token: number for number, token in enumerate(table)},
        max(map(len, table)),
        [],
        [0],
    )
    for text in texts:
        at = 0
        while at < len(text):
            size = rng.randint(1, longest)
            while (token := ids.get(text[at : at + size])) is None:
                size -= 1
            tokens += [token] if rng.random() < 0.9 else [len(table) - 1, token]
            at += len(table[token])
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
    """Rollouts of `lengths` tokens in fp32 on the default device. N = sum(lengths); M = N, or fewer used rows if shared.

    The same on every device but for the rounding of the head: random numbers are drawn on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    device = torch.get_default_device()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").to(device)

    total, spread = (
        sum(lengths),
        SPREAD * temperature,
    )  # so that the temperature leaves entropies alone
    offset = (
        OFFSET if softcap is None else softcap / 3
    )  # most of the logits where the cap bends, few where it is flat
    hidden, weight = (
        normal(total, hidden_size),
        normal(vocab_size, hidden_size) * spread / (hidden_size - 1) ** 0.5,
    )
    hidden[:, -1], weight[:, -1] = offset**0.5, offset**0.5
    bias = normal(vocab_size) if with_bias else torch.zeros(vocab_size)
    row_index = torch.arange(total)
    if shared and total:
        row_index = torch.randint(total, (total,), generator=generator, device="cpu").to(device)
    targets = torch.empty(total, dtype=torch.int64)
    for start in range(0, total, 256):  # [256, V] at a time, for benches
        z = hidden[row_index[start : start + 256]] @ weight.T + bias
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        drawn = torch.multinomial((z / temperature).softmax(-1).cpu(), 1, generator=generator)
        targets[start : start + 256] = drawn.squeeze(1)
    settings = {
        "temperature": temperature,
        "softcap": softcap,
        "bias": bias,
        "row_index": row_index,
    }
    logprobs, _ = linear_logprob(hidden, weight, targets, **settings)
    old, ref, sampler = (logprobs + noise * normal(total) for _ in range(3))
    advantages = normal(len(lengths))
    advantages[2::3] = 0
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return PackedRollouts(
        hidden=hidden,
        weight=weight,
        bias=bias,
        targets=targets,
        row_index=row_index,
        advantages=advantages,
        cu_seqlens=cu_seqlens,
        old_logprobs=old,
        ref_logprobs=ref,
        sampler_logprobs=sampler,
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| in fp64; the plain norm of the error where expected is zero."""
    error, size = (
        (actual.double() - expected.double()).norm().item(),
        expected.double().norm().item(),
    )
    return error / size if size > 0 else error


def assert_close(
    name: str,
    actual: Tensor,
    expected: Tensor,
    *,
    atol: float | None = None,
    rtol: float | None = None,
):
    """Largest absolute difference at most atol, or relative_error at most rtol; nan only where expected has it."""
    assert actual.shape == expected.shape, (
        f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    )
    assert torch.equal(actual.isnan(), expected.isnan()), (
        f"{name}: nan in other places than expected"
    )
    actual, expected = actual.double().nan_to_num(), expected.double().nan_to_num()
    if atol is not None and actual.numel():
        worst = (actual - expected).abs().max().item()
        assert worst <= atol, f"{name}: off by {worst:.3g}, allowed {atol:.3g}"
    if rtol is not None:
        error = relative_error(actual, expected)
        assert error <= rtol, f"{name}: relative error {error:.3g}, allowed {rtol:.3g}"
