"""The monitor on series whose outcome is known."""

import json

import pytest

from srt_fast.collapse.detector import FalseAlarmBound
from srt_fast.collapse.look import Look, Measurement
from srt_fast.collapse.monitor import Monitor
from srt_fast.config import MonitorConfig

HEALTHY = {
    "top_answer_share": 0.1,
    "answer_entropy": 0.95,
    "unanimous": 0.2,
    "vote_share": 0.6,
    "entropy": 0.3,
    "completion_tokens": 10.0,
    "repetition": 0.0,
}
BOUND = FalseAlarmBound(looks=10_000)


def measurement(score: float, kl: float = 0.1) -> Measurement:
    """Of 200 samples."""
    agreeing = round(100 * score)
    return Measurement(Look((agreeing, agreeing), (100, 100)), kl, None)


def observe_steps(monitor: Monitor, values: dict) -> None:
    """Five steps, as many as the monitor averages."""
    for _ in range(5):
        monitor.observe(values)


@pytest.mark.parametrize(
    ("values", "probe", "signs"),
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
        # both a little
        ({"vote_share": 0.75}, {"score": 0.68}, ["divergence"]),
        ({"vote_share": None, "entropy": float("nan")}, {}, []),
    ],
)
def test_signs_are_shown_and_raise_no_alarm(values, probe, signs):
    """The monitor's state survives JSON."""
    monitor = Monitor(BOUND)
    for step in (0, 5):
        monitor.observe_probe(step, measurement(0.75))
    observe_steps(monitor, HEALTHY)
    assert monitor.check().new_signs == []
    observe_steps(monitor, HEALTHY | values)
    for step in (10, 15):
        monitor.observe_probe(step, measurement(**{"score": 0.75} | probe))
    state = json.loads(json.dumps(monitor.state_dict()))
    monitor = Monitor(BOUND)
    monitor.load_state_dict(state)
    verdict = monitor.check()
    assert verdict.new_signs == signs
    assert not verdict.raises_alarm
    assert monitor.check().new_signs == []


def test_the_probe_raises_one_alarm():
    monitor = Monitor(BOUND)
    alarms = []
    for number, score in enumerate([0.8] * 8 + [0.4] * 6):
        monitor.observe_probe(number, measurement(score))
        alarms += [number] if monitor.check().raises_alarm else []
        assert not monitor.check().raises_alarm  # a step without a look
    assert alarms == [10]


def test_best_step():
    """The best step has the best mean of two measurements, and has not fallen itself.

    Step 10 has a mean of 0.75, which is above step 5's 0.7, but its own 0.6 is not.
    """
    monitor = Monitor(BOUND)
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
        monitor.observe_probe(step, measurement(score))
        assert monitor.best_step == best_step
    monitor.restart()
    assert monitor.best_step == 35


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({}, FalseAlarmBound(looks=10_000)),
        ({"false_alarm_looks": 500}, FalseAlarmBound(looks=500)),
        ({"false_alarm_chance": 0.01}, FalseAlarmBound(chance=0.01)),
    ],
)
def test_one_bound_is_in_force(settings, bound):
    assert FalseAlarmBound.of(MonitorConfig(**settings)) == bound


def test_two_bounds_are_refused():
    message = r"monitor.false_alarm_chance: expected none with .*looks=500, got 0.01"
    with pytest.raises(ValueError, match=message):
        MonitorConfig(false_alarm_looks=500, false_alarm_chance=0.01)
