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
PROBE_SCORES = [0.5, 1.0] * 16


def observe_steps(monitor: Monitor, values: dict) -> None:
    """Five steps, as many as the monitor averages."""
    for _ in range(5):
        monitor.observe(values)


def check(monitor: Monitor) -> tuple[list[str], bool]:
    verdict = monitor.check()
    return verdict.new_causes, verdict.raises_alarm


def check_after(
    values: dict, scores: list[float] | None = None, kl: float = 0.1, measurements: int = 2
) -> tuple[list[str], bool]:
    """The verdict after a healthy start with probe scores of 0.75, and five steps of `values`."""
    monitor = Monitor()
    for step in (0, 5):
        monitor.observe_probe(step, PROBE_SCORES, 0.0)
    observe_steps(monitor, HEALTHY)
    assert check(monitor) == ([], False)
    observe_steps(monitor, HEALTHY | values)
    for number in range(measurements):
        monitor.observe_probe(10 + number, scores or PROBE_SCORES, kl)
    return check(monitor)


@pytest.mark.parametrize(
    ("values", "probe", "causes"),
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
        # 15 points down on every prompt
        ({}, {"scores": [0.3, 0.9] * 16}, ["probe_score"]),
        # one measurement of the two that are averaged
        ({}, {"scores": [0.3, 0.9] * 16, "measurements": 1}, []),
        # one prompt of 32
        ({}, {"scores": [0.0] + [0.5, 1.0] * 15 + [1.0]}, []),
        # both a little
        ({"vote_share": 0.75}, {"scores": [0.45, 0.9] * 16}, ["divergence"]),
        ({"vote_share": None, "entropy": float("nan")}, {}, []),
    ],
)
def test_causes(values, probe, causes):
    new_causes, raises_alarm = check_after(values, **probe)
    assert new_causes == causes
    assert raises_alarm == any(CAUSES[name].is_strong for name in causes)


def test_two_weak_causes_raise_one_alarm():
    """The state of the monitor survives JSON at every point."""
    monitor = Monitor()
    entropy = HEALTHY | {"entropy": 0.5}
    entropy_and_repetition = entropy | {"repetition": 0.4}
    for values, expected in (
        (HEALTHY, ([], False)),
        (entropy, (["entropy"], False)),
        (entropy_and_repetition, (["repetition"], True)),
        (entropy_and_repetition, ([], False)),
        (HEALTHY, ([], False)),
        (entropy_and_repetition, (["entropy", "repetition"], True)),
    ):
        observe_steps(monitor, values)
        assert check(monitor) == expected
        state = json.loads(json.dumps(monitor.state_dict()))
        monitor = Monitor()
        monitor.load_state_dict(state)


def test_best_step():
    """The best step has the best mean of two measurements, and has not fallen itself.

    Step 10 has a mean of 0.75, which is above step 5's 0.7, but its own 0.6 is not.
    """
    monitor = Monitor()
    for step, score, best_step in (
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
        assert monitor.best_step == best_step
    monitor.restart()
    assert check(monitor) == ([], False)
