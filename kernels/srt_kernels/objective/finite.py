"""Checks that what a loss is made of is finite: an error names the tensor and the first place.

The places are made on the device. A caller on a GPU reads them together with what else it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from srt_kernels.core.checks import expect
from srt_kernels.objective.token_inputs import TokenInputs

TOKEN_VALUES = ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs")


def token_values(inputs: TokenInputs) -> dict[str, Tensor]:
    """The floats [n] of each token that a caller gave, by the names of the arguments."""
    values = {name: getattr(inputs, name) for name in TOKEN_VALUES}
    return {name: tensor for name, tensor in values.items() if tensor is not None}


def first_bad_tokens(values: Mapping[str, Tensor], is_read: Tensor) -> Tensor:
    """[k] int64: of each of k values [n] the first token that is read and not finite; n if none.

    is_read [n] bool, n above 0. Does not synchronise with the host.
    """
    is_finite = torch.stack([tensor.isfinite() for tensor in values.values()])
    return first_true(is_read & ~is_finite)


def first_true(flags: Tensor) -> Tensor:
    """[...] int64: of flags [..., n] the first place along n that is true; n if none."""
    places = torch.arange(flags.shape[-1], device=flags.device)
    return places.where(flags, len(places)).amin(-1)


def expect_finite(
    values: Mapping[str, Tensor], first_bad: Sequence[int], rollout_index: Tensor
) -> None:
    """Raise ValueError that names the first bad token of the first bad tensor.

    first_bad: first_bad_tokens on the host. rollout_index [n].
    """
    for (name, tensor), token in zip(values.items(), first_bad, strict=True):
        if token < len(tensor):
            rollout = int(rollout_index[token])
            got = f"{float(tensor[token])} at token {token}, of rollout {rollout}"
            expect(False, name, "finite values", got)


def check_finite_on_cpu(values: Mapping[str, Tensor], inputs: TokenInputs) -> None:
    """Raise ValueError for a nan or inf among values [n] of CPU tensors.

    Nothing is checked on a GPU, where looking would synchronise with the host.
    """
    index = inputs.rollout_index
    if index.device.type != "cpu" or len(index) == 0:
        return
    every_token = torch.ones_like(index, dtype=torch.bool)
    expect_finite(values, first_bad_tokens(values, every_token).tolist(), index)
