"""The order in which a run meets its problems."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from srt_fast.tasks.stream import PromptStream
from srt_fast.types import Problem


class Numbers:
    """A task whose problem i has the prompt str(i)."""

    def __init__(self, train_size: int | None):
        self.train_size = train_size

    def train(self, index: int) -> Problem:
        return Problem(id=str(index), prompt=str(index))


def numbers_of(size: int | None, seed: int, count: int) -> list[int]:
    """The first `count` problems of a stream."""
    return [int(problem.prompt) for problem in PromptStream(Numbers(size), seed).next(count)]


@settings(max_examples=60, deadline=None)
@given(
    size=st.none() | st.integers(1, 7),
    seed=st.integers(0, 3),
    earlier_counts=st.lists(st.integers(0, 9), max_size=6),
    count=st.integers(1, 9),
)
def test_a_stream_resumes_exactly(size, seed, earlier_counts, count):
    stream = PromptStream(Numbers(size), seed)
    for earlier_count in earlier_counts:
        assert len(stream.next(earlier_count)) == earlier_count
    resumed = PromptStream(Numbers(size), seed)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert resumed.next(count) == stream.next(count)


def test_every_epoch_has_every_problem_once_in_another_order():
    two_epochs = numbers_of(40, seed=0, count=80)
    epochs = [two_epochs[:40], two_epochs[40:], numbers_of(40, seed=1, count=40)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_endless_task_is_read_from_another_position_with_another_seed():
    first = set(numbers_of(None, seed=0, count=1000))
    second = set(numbers_of(None, seed=1, count=1000))
    assert len(first) == 1000
    assert first.isdisjoint(second)
