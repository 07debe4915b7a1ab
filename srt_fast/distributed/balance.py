"""Which rank trains on which rollout, and what a micro-batch has room for. Without torch."""

from __future__ import annotations

import heapq
import math

KEYS_PER_TOKEN = 4
"""Keys that a micro-batch has room for, for each token of its budget. Each layer keeps the keys and
values that it has gathered until backward. With grouped queries (a quarter as many heads) four of
them take about a tenth of what a token's other activations take."""


def split(lengths: list[int], token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Micro-batches of each rank: split(...)[rank][micro_batch] are places in `lengths`.

    All ranks get equally many micro-batches. A micro-batch may be empty. It has at most
    `token_budget` tokens, or one sequence that is longer.

    The longest sequence goes to the emptiest micro-batch first (LPT). A sequence is what stays
    together: a rollout, or several that share a prompt.
    """
    if not lengths:
        return [[] for _ in range(ranks)]
    largest_allowed = max(token_budget, *lengths)
    count = max(1, math.ceil(sum(lengths) / (token_budget * ranks)))
    while True:
        bins = _fill(lengths, count * ranks)
        if max(tokens for tokens, _ in bins) <= largest_allowed:
            break
        count += 1
    # Micro-batches that run at the same time have like lengths.
    bins.sort(key=lambda item: -item[0])
    return [[bins[index * ranks + rank][1] for index in range(count)] for rank in range(ranks)]


def _fill(lengths: list[int], count: int) -> list[tuple[int, list[int]]]:
    """`count` bins as (tokens, places in lengths), each place in one of them."""
    places: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, index) for index in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        tokens, index = heapq.heappop(heap)
        places[index].append(place)
        heapq.heappush(heap, (tokens + lengths[place], index))
    return [(tokens, places[index]) for tokens, index in sorted(heap, key=lambda item: item[1])]
