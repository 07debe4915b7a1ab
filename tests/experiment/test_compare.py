import pytest

from srt_fast.experiment import compare
from srt_fast.experiment.grid import Arm
from srt_fast.experiment.measure import measure
from support.experiment import FALLING, RISING, WARNINGS, make_run

STOP = (14, "stopped", {"best_step": 5})


def test_alarms_and_warnings_before_and_after_a_fall_and_false_ones():
    early = {2 * look: 0.8 if look < 4 else 0.5 for look in range(11)}
    late = dict.fromkeys(range(19), 0.9) | dict.fromkeys(range(19, 31), 0.7)
    one_bad_look = dict.fromkeys(range(31), 0.9) | {20: 0.6}
    runs = [
        make_run("majority", FALLING, 0, events=WARNINGS, probe_scores=early),
        make_run("majority", FALLING, 1, probe_scores=late),
        make_run("majority", FALLING, 2),
        make_run("oracle", RISING, 0, probe_scores=one_bad_look),
        make_run("stop", RISING, 0, events=[*WARNINGS, STOP], probe_scores=early),
    ]
    results = [measure(run) for run in runs]
    looks, chance, best_look = compare.alarm_times(results)
    assert (looks["signal"], looks["falls"], looks["early"], looks["late"]) == (
        "10,000 looks",
        2,
        1,
        1,
    )
    assert looks["lead"] == {"median": 3, "min": -2, "max": 8}
    assert (looks["stable"], looks["false_alarms"], looks["stable_looks"]) == (1, 0, 31)
    assert (chance["early"], chance["late"], chance["false_alarms"]) == (1, 1, 0)
    assert best_look["false_alarms"] == 1
    [length] = compare.warning_times(results)
    assert length["signal"] == "length"
    assert (length["early"], length["missed"], length["false_alarms"]) == (1, 2, 0)


def test_the_rise_is_a_share_of_the_gain_with_gold_answers():
    vote = measure(make_run("rise_majority", {0: 0.5, 10: 0.86}))
    oracle = measure(make_run("rise_oracle", {0: 0.5, 10: 0.9}))
    [row] = compare.rise([vote, oracle])
    assert row["share"] == pytest.approx(0.9)
    assert row["maj_end"] > row["maj_start"]


def test_arms_and_the_winner():
    arms = [
        Arm("majority", "collapse", {}, ""),
        Arm("oracle", "collapse", {}, ""),
        Arm("soft", "reward", {}, ""),
        Arm("frozen", "reward", {}, ""),
        Arm("ema", "reward", {}, ""),
    ]
    runs = [
        make_run("majority", FALLING, 0),
        make_run("majority", FALLING, 1),
        make_run("oracle", RISING, 0),
        make_run("oracle", RISING, 1),
        make_run("soft", {0: 0.5, 10: 0.7}, 0, seconds=2.0),
        make_run("soft", {0: 0.5, 10: 0.8}, 1, seconds=2.0),
        make_run("frozen", {0: 0.5, 10: 0.9}, 0),
    ]
    rows = {row["arm"]: row for row in compare.compare_arms(arms, [measure(run) for run in runs])}
    vote = rows["majority"]
    assert (vote["runs"], vote["collapses"], vote["falls"], vote["ends_below_start"]) == (
        2,
        2,
        2,
        2,
    )
    assert rows["soft"]["end"] == {"mean": pytest.approx(0.75), "min": 0.7, "max": 0.8}
    assert rows["soft"]["rise"]["mean"] == pytest.approx(0.25)
    assert rows["soft"]["relative_seconds"] == 2
    assert rows["soft"]["tokens_per_step"] == 105.5  # of 101 to 110
    assert rows["ema"]["runs"] == 0
    assert rows["ema"]["end"] is None
    winner = compare.winner(list(rows.values()), seeds=2)  # frozen ends higher, but on one seed
    assert winner is not None
    assert (winner["arm"], winner["next"]) == ("soft", "majority")
    assert winner["margin"] == pytest.approx(0.35)


def test_early_stopping_is_compared_with_the_best_evaluation():
    events = [*WARNINGS[:2], STOP]
    stop = make_run("majority_stop", {0: 0.5, 10: 0.66, 14: 0.64}, events=events)
    vote = make_run("majority", FALLING, events=WARNINGS, probe_scores={8: 0.9})
    vote_row, stop_row = compare.early_stopping([measure(vote), measure(stop)])
    assert (vote_row["step"], vote_row["pass1"], vote_row["alarm_step"]) == (8, 0.50, 14)
    assert vote_row["best_pass1"] == 0.70
    assert (stop_row["step"], stop_row["pass1"], stop_row["best_pass1"]) == (5, 0.64, 0.70)
    assert stop_row["loss"] == pytest.approx(0.06)


def test_labels_over_time_and_failures_in_all_places():
    arms = [Arm("majority", "", {}, "", place=place) for place in ("gcd", "lcm")]
    runs = [make_run("majority", FALLING, seed, place=arm.place) for seed in (0, 1) for arm in arms]
    runs.append(make_run("majority", RISING, 2, place="lcm"))
    runs.append(make_run("majority", {0: 0.5, 10: 0.8, 20: 0.6}, 3, place="lcm"))
    runs.append(make_run("majority", {0: 0.5, 10: 0.52, 20: 0.45}, 4, place="lcm"))
    results = [measure(run) for run in runs]
    [row] = compare.labels_over_time(arms[:1], results[:5])
    # Evaluations at 10, 20 and 30 of 30 steps: none in the first quarter.
    assert row["vote"] == pytest.approx([None, 0.455, 0.555, 0.655])
    assert row["label"] == [None, 0.5, 0.5, 0.5]
    assert compare.failures_by_arm(arms, results) == [
        {
            "arm": "majority",
            "runs": 7,
            "collapses": 4,
            "falls": 5,
            "ends_below_start": 5,
            "falls_below_start": 4,
        }
    ]
