import pytest

from srt_fast.experiment.measure import ALARM, measure
from support.experiment import FALLING, RISING, WARNINGS, make_run


def test_a_run_that_rises_falls_and_collapses():
    """The worked example of measure.py."""
    probe_scores = {5: 0.7, 10: 0.9, 13: 0.9, 15: 1.0}
    result = measure(make_run("majority", FALLING, events=WARNINGS, probe_scores=probe_scores))
    assert (result.start, result.peak, result.peak_step, result.end) == (0.50, 0.70, 10, 0.40)
    assert result.fall_step == 20
    assert result.collapse_step == 30
    assert result.warning_steps == {"length": 12, ALARM: 14}
    assert (result.best_probe_step, result.best_probe_pass1) == (10, 0.70)
    assert result.pseudo_reward == pytest.approx(0.97)
    assert result.label_accuracy == 0.5
    # Means of the ten steps before each evaluation: of 0.41 to 0.50, and so on.
    assert [point.step for point in result.labels] == [10, 20, 30]
    assert [point.vote for point in result.labels] == pytest.approx([0.455, 0.555, 0.655])
    assert [point.label for point in result.labels] == [0.5] * 3
    assert result.tokens_per_step == 115.5  # of 101 to 130
    assert result.actions is None


def test_what_does_not_happen_is_none():
    result = measure(make_run("oracle", RISING))
    assert result.fall_step is None
    assert result.collapse_step is None
    assert result.best_probe_step is None
    assert result.warning_steps == {}


def test_evaluations_without_accuracy_are_an_error():
    run = make_run("oracle", RISING)
    del run.rows_of("eval")[-1]["pass1"]
    with pytest.raises(ValueError, match="expected gold answers for all held-out"):
        measure(run)


def test_below_the_start_with_a_low_pseudo_reward_is_no_collapse():
    result = measure(make_run("majority", {0: 0.5, 10: 0.45, 20: 0.45}, pseudo_reward=0.9))
    assert result.fall_step is None
    assert result.collapse_step is None


def test_actions_of_the_monitor():
    events = [(12, "rolled_back", {"best_step": 5}), (28, "stopped", {"best_step": 10})]
    result = measure(make_run("majority_rollback", FALLING, events=events))
    assert result.actions == "rolled back at 12, stopped at 28"
    assert result.restored_step == 10
    assert result.warning_steps == {}
