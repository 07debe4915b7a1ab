"""Which rows are computed together: chunks of logits, and rows that repeat."""

import itertools
from dataclasses import replace

import pytest
import torch

from srt_kernels.core.segments import even_slices
from srt_kernels.lm_head.gradient_sources import active_index
from srt_kernels.lm_head.lm_head import (
    CPU_CHUNK_BYTES,
    GPU_CHUNK_BYTES,
    gpu_chunk_rows,
    make_head,
)
from srt_kernels.lm_head.passes import _whole_rollouts
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.token_inputs import make_token_inputs


def sizes_of(parts, total):
    """Sizes of slices that follow each other from 0 to total."""
    bounds = [0, *(part.stop for part in parts)]
    assert [part.start for part in parts] == bounds[:-1] and bounds[-1] == total
    return [stop - start for start, stop in itertools.pairwise(bounds)]


@pytest.mark.parametrize("most, unit", [(4224, 128), (20, 4), (7, 1)])
def test_chunks_are_equal(most, unit):
    for total in (*range(1, 3 * most, 1 + most // 50), 10 * most, 10 * most + 1):
        parts = even_slices(total, most)
        sizes = sizes_of(parts, total)
        assert len(parts) == -(-total // most)
        assert max(sizes) <= most and max(sizes) - min(sizes) <= unit
        assert all(part.start % unit == 0 for part in parts)
    assert even_slices(0, most) == []


def test_chunks_of_whole_rollouts_are_nearly_equal():
    generator = torch.Generator("cpu").manual_seed(0)
    for count in (1, 5, 40):
        lengths = torch.randint(0, 100, (count,), generator=generator, device="cpu").tolist()
        bounds = list(itertools.accumulate(lengths, initial=0))
        sizes = sizes_of(_whole_rollouts(bounds, 512), bounds[-1])
        # A chunk ends before a rollout of less than 100 that it has no room for.
        assert len(sizes) <= -(-bounds[-1] // (512 - 100))
        assert max(sizes) <= min(512, bounds[-1] / len(sizes) + 100)
    assert _whole_rollouts([0, 512, 513], 512) == [slice(0, 512), slice(512, 513)]
    assert _whole_rollouts([0, 0], 512) == []


def test_a_cpus_chunk_is_what_the_documentation_says():
    hidden, weight = torch.zeros(4, 2), torch.zeros(8192, 2)
    head = make_head(hidden, weight, torch.zeros(4, dtype=torch.int64))
    if not hidden.is_cuda:
        assert head.chunk_rows == CPU_CHUNK_BYTES // (8192 * 4)


def test_a_gpus_chunk_fills_its_waves():
    for vocab_size in (32000, 128256, 151936, 1 << 24):
        for hidden_size in (64, 896, 5120):
            rows = gpu_chunk_rows(4 * vocab_size, hidden_size, 132)
            assert rows % 128 == 0
            assert 4 * vocab_size * rows <= max(GPU_CHUNK_BYTES, 4 * vocab_size * 128)
    tiles = 4 * 132  # four waves of 128 x 256
    for vocab_size in (128256, 151936):
        assert gpu_chunk_rows(4 * vocab_size, 4096, 132) * 4096 == tiles * 128 * 256


def test_rows_that_repeat_are_found():
    tensors = (torch.zeros(5, 2), torch.zeros(9, 2), torch.zeros(4, dtype=torch.int64))
    head = make_head(*tensors, row_index=torch.tensor([4, 2, 2, 0]))
    rollouts = (torch.ones(1), torch.tensor([0, 4]), Objective().json)
    _, inputs = make_token_inputs(tensors[2], torch.float32, *rollouts, *5 * [None])
    for active, has_unique_rows in (
        ([0, 1, 3], True),  # the second row 2 is not computed
        ([0, 1, 2, 3], False),
        ([1, 2], False),
        ([], True),
    ):
        advantages = torch.zeros(4, dtype=torch.float64)
        advantages[active] = 1.0
        inputs = replace(inputs, advantages=advantages)
        index, is_unique = active_index(Objective(), head, inputs, None)
        assert index.tolist() == active and is_unique == has_unique_rows
