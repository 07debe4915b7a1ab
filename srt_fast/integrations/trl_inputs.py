"""Batches of TRL's GRPOTrainer: their rows, their mask, and columns for reward functions."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor, Tensor]  # the arguments of pack_rows
Inputs = dict[str, Any]  # a micro-batch, or an example with its columns, as TRL makes it


def loss_mask(inputs: Inputs) -> Tensor:
    """[B, C] bool: the tokens that count. False: padding, masked completions, text of tools."""
    return (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()


def select_rows(inputs: Inputs, selection: Tensor) -> Rows:
    """The arguments of pack_rows for the rows `selection` [B] bool."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    valid = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    is_target = nn.functional.pad(loss_mask(inputs), (inputs["prompt_ids"].shape[1], 0))
    return ids[selection], valid[selection].bool(), is_target[selection]


def add_masked_column(
    examples: list[Inputs], completion_ids: list[list[int]], ends: Container[int]
) -> list[Inputs]:
    """The examples with a column is_masked: whether the completion was truncated.

    ends: the tokens that end a completion.
    """
    return [
        example | {"is_masked": ids[-1] not in ends}
        for example, ids in zip(examples, completion_ids, strict=True)
    ]
