"""The alarm's test by simulation. Seeded, so it is the same on every machine.

The healthy runs here are the worst that are still healthy: exactly TOLERANCE below the reference.
"""

import json
import math
import random
import statistics

import pytest

from srt_fast.collapse.delay import delay_table, detection_delay
from srt_fast.collapse.detector import TOLERANCE, WINDOW, FallDetector, FalseAlarmBound
from srt_fast.collapse.look import Look
from support.looks import draw_look, first_alarm, spread
from support.paths import ROOT

REFERENCE = 0.8
LUCK = 1e-3
"""Chance that a test with another seed fails though the bound holds."""


def with_reference(bound: FalseAlarmBound) -> FallDetector:
    """A detector whose reference is REFERENCE and stays."""
    detector = FallDetector(bound)
    detector.state.best = [1.0, 1.0]
    detector.state.measured = [REFERENCE, REFERENCE]
    detector.state.reference_looks = WINDOW
    detector.state.reference_samples = 10**9  # measured without error
    return detector


def alarms_of_the_worst_healthy_runs(bound: FalseAlarmBound, runs: int, looks: int) -> list:
    rates = spread(REFERENCE - TOLERANCE, 8)
    found = []
    for run in range(runs):
        rng = random.Random(f"healthy/{run}")
        found.append(
            first_alarm(with_reference(bound), (draw_look(rng, rates) for _ in range(looks)))
        )
    return found


@pytest.mark.parametrize(
    ("bound", "largest_rate"),
    [
        # The mean wealth after T looks is at most T. So by Markov: T / looks.
        (FalseAlarmBound(looks=300), 60 / 300),
        (FalseAlarmBound(chance=0.1), 0.1),
    ],
)
def test_false_alarms_are_as_rare_as_promised(bound, largest_rate):
    runs, looks = 200, 60
    alarms = alarms_of_the_worst_healthy_runs(bound, runs, looks)
    rate = sum(alarm is not None for alarm in alarms) / runs
    luck = math.sqrt(math.log(1 / LUCK) / (2 * runs))  # Hoeffding's inequality
    assert rate <= largest_rate + luck


def test_the_mean_number_of_looks_between_false_alarms():
    """Runs end after 10 times that, which makes their mean smaller."""
    looks, runs = 20, 100
    alarms = alarms_of_the_worst_healthy_runs(FalseAlarmBound(looks=looks), runs, 10 * looks)
    lengths = [10 * looks if alarm is None else alarm + 1 for alarm in alarms]
    luck = 3.1 * statistics.stdev(lengths) / math.sqrt(runs)  # of a normal distribution
    assert statistics.fmean(lengths) >= looks - luck
    assert any(alarm is not None for alarm in alarms)


def test_small_looks_have_no_more_false_alarms():
    """Two samples a look, of a policy that does not change: the reference's error is large."""
    runs, looks = 200, 200
    alarms = 0
    for run in range(runs):
        rng = random.Random(f"small/{run}")
        detector = FallDetector(FalseAlarmBound(looks=10_000))
        found = first_alarm(detector, (draw_look(rng, [0.5]) for _ in range(looks)))
        alarms += found is not None
    # By the bound, and by a reference that is three standard errors too high.
    rate = looks / 10_000 + 2 * statistics.NormalDist().cdf(-3)
    assert chance_of_more(alarms - 1, runs, rate) >= LUCK


def chance_of_more(count: int, runs: int, rate: float) -> float:
    """The chance of more than `count` among `runs`, each of which has the chance `rate`."""
    return 1 - sum(
        math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(count + 1)
    )


def test_the_reference_is_not_the_luckiest_window():
    """Over runs of 100 looks with one true score, its mean is that score."""
    score, runs = 0.7, 40
    references = []
    for run in range(runs):
        rng = random.Random(f"reference/{run}")
        detector = FallDetector(FalseAlarmBound(looks=10_000))
        for _ in range(100):
            detector.observe(draw_look(rng, [score] * 64))
        references.append(detector.state.reference)
    error = math.sqrt(score * (1 - score) / (WINDOW * 128 * runs))
    assert abs(statistics.fmean(references) - score) <= 3.3 * error


@pytest.mark.parametrize("fall", [0.1, 0.2])
def test_an_alarm_comes_as_late_as_calculated(fall):
    bound = FalseAlarmBound(looks=10_000)
    runs = 60
    delays = []
    for run in range(runs):
        rng = random.Random(f"fall/{fall}/{run}")
        looks = (draw_look(rng, [REFERENCE - fall] * 64) for _ in range(100))
        alarm = first_alarm(with_reference(bound), looks)
        delays.append(100 if alarm is None else alarm + 1)
    expected = detection_delay(256, fall, reference=REFERENCE, bound=bound)
    luck = 3.3 * 1.25 * statistics.stdev(delays) / math.sqrt(runs)  # of a median
    assert abs(statistics.median(delays) - expected) <= 1 + luck  # a delay is a whole number


def test_a_rising_run_that_falls_and_recovers_raises_one_alarm_per_fall():
    """The state survives JSON after every look."""
    rng = random.Random("rise")
    rise = [0.5 + 0.3 * min(number / 10, 1) for number in range(30)]
    levels = rise + [0.5] * 20 + [0.8] * 30 + [0.5] * 20
    bound = FalseAlarmBound(looks=10_000)
    detector = FallDetector(bound)
    alarms = []
    for number, level in enumerate(levels):
        if detector.observe(draw_look(rng, spread(level))):
            alarms.append(number)
        resumed = FallDetector(bound)
        resumed.load_state_dict(json.loads(json.dumps(detector.state_dict())))
        assert resumed.state == detector.state
        detector = resumed
    first, second = alarms
    assert 30 <= first < 40
    assert 80 <= second < 90


def test_a_restart_forgets_the_evidence_and_keeps_the_reference():
    """After a rollback the same bad looks take as long as before to raise the alarm."""
    detector = with_reference(FalseAlarmBound(looks=10_000))
    bad = Look((52, 52), (128, 128))
    assert first_alarm(detector, [bad] * 10) == 2
    detector.restart()
    assert detector.state.reference == REFERENCE
    assert first_alarm(detector, [bad] * 10) == 2


def test_a_score_that_cannot_fall_is_not_tested():
    """The starting model agrees with itself on 3 % of the samples, and then never."""
    detector = FallDetector(FalseAlarmBound(looks=2))
    looks = [Look((4, 4), (128, 128))] * 10 + [Look((0, 0), (128, 128))] * 50
    assert first_alarm(detector, looks) is None


def test_falls_that_the_test_does_not_see():
    bound = FalseAlarmBound(chance=0.01)
    assert detection_delay(256, 0.05, reference=0.8, bound=bound) == math.inf
    early, late = (
        detection_delay(256, 0.1, reference=0.8, bound=bound, look=look) for look in (1, 1000)
    )
    assert early < late
    with pytest.raises(ValueError, match=r"fall: expected more than 0, below .*0.8, got 0.9"):
        detection_delay(256, 0.9, reference=0.8, bound=bound)


def test_the_table_of_the_docs_is_the_calculated_one():
    assert delay_table() in (ROOT / "docs" / "alarm.md").read_text()
