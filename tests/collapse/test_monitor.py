"""The monitor on series whose outcome is known."""

import json

import pytest

from srt_fast.collapse.monitor import CAUSES, Monitor

HEALTHY = {
    "top_answer_share": 0.1,
    "answer_entropy": 0.95,
    "unanimous": 0.2,
    "vote_share": 0.6,
    "entropy": 0.3,
    "completion_tokens": 10.0,
    "repetition": 0.0,
}


def check(monitor: Monitor) -> tuple[list[str], bool]:
    verdict = monitor.check()
    return verdict.new_causes, verdict.raises_alarm


def after(
    values: dict, scores: list[float] | None = None, kl: float = 0.1, looks: int = 2
) -> tuple[list[str], bool]:
    """What a monitor says after a healthy beginning, with held-out scores of 0.75, and then five steps of these values."""
    monitor = Monitor()
    for step in (0, 5):
        monitor.observe_probe(step, [0.5, 1.0] * 16, 0.0)
    for _ in range(5):
        monitor.observe(HEALTHY)
    assert check(monitor) == ([], False)
    for _ in range(5):
        monitor.observe(HEALTHY | values)
    for look in range(looks):
        monitor.observe_probe(10 + look, scores or [0.5, 1.0] * 16, kl)
    return check(monitor)


@pytest.mark.parametrize(
    ("values", "looked", "causes"),
    [
        ({"top_answer_share": 0.31}, {}, ["constant_answer"]),
        ({"top_answer_share": 0.29}, {}, []),
        ({"unanimous": 0.96}, {}, ["saturated"]),
        ({"entropy": 0.46}, {}, ["entropy"]),
        ({"completion_tokens": 4.9}, {}, ["length"]),
        ({"completion_tokens": 20.1}, {}, ["length"]),
        ({"repetition": 0.21}, {}, ["repetition"]),
        ({"answer_entropy": 0.75}, {}, ["few_answers"]),
        ({"vote_share": 0.81}, {}, ["divergence"]),
        ({}, {"kl": 1.1}, ["kl"]),
        ({}, {"scores": [0.3, 0.9] * 16}, ["probe_score"]),  # 15 points down on every prompt
        ({}, {"scores": [0.3, 0.9] * 16, "looks": 1}, []),  # one look of the two that are averaged
        ({}, {"scores": [0.0] + [0.5, 1.0] * 15 + [1.0]}, []),  # one prompt of 32
        ({"vote_share": 0.75}, {"scores": [0.45, 0.9] * 16}, ["divergence"]),  # both a little
        ({"vote_share": None, "entropy": float("nan")}, {}, []),
    ],
)
def test_what_raises_which_cause(values, looked, causes):
    new, alarm = after(values, **looked)
    assert new == causes
    assert alarm == any(CAUSES[name].is_strong for name in causes)


def test_two_weak_causes_are_an_alarm_and_it_is_raised_once():
    monitor = Monitor()
    for values, expected in (
        (HEALTHY, ([], False)),
        (HEALTHY | {"entropy": 0.5}, (["entropy"], False)),
        (HEALTHY | {"entropy": 0.5, "repetition": 0.4}, (["repetition"], True)),
        (HEALTHY | {"entropy": 0.5, "repetition": 0.4}, ([], False)),
        (HEALTHY, ([], False)),
        (HEALTHY | {"entropy": 0.5, "repetition": 0.4}, (["entropy", "repetition"], True)),
    ):
        for _ in range(5):
            monitor.observe(values)
        assert check(monitor) == expected
        state = json.loads(json.dumps(monitor.state_dict()))  # plain values
        monitor = Monitor()
        monitor.load_state_dict(state)


def test_the_best_step_has_the_best_mean_of_two_looks_and_has_not_fallen():
    """Step 10 has a mean of 0.75, which is above step 5's 0.7, but its own 0.6 is not."""
    monitor = Monitor()
    for step, score, best in (
        (0, 0.5, 0),
        (5, 0.9, 5),
        (10, 0.6, 5),
        (15, 0.7, 5),
        (20, 0.9, 20),
        (25, 0.8, 20),
        (30, 0.9, 30),
        (35, 0.86, 35),
    ):
        monitor.observe_probe(step, [score] * 4, 0.0)
        assert monitor.best_step == best
    monitor.restart()
    assert check(monitor) == ([], False)
