"""What the runs of a grid show together. Plain Python, no torch. A point is 0.01 of pass@1."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from srt_fast.experiment.grid import Arm
from srt_fast.experiment.measure import ALARM, TURN_SCORES, Labels, RunResult
from srt_fast.experiment.rules import RULES

Row = dict[str, Any]


def rise(results: Sequence[RunResult]) -> list[Row]:
    """Per seed: the plain vote's gain at its peak, as a share of the gain with gold answers."""
    oracles = {result.seed: result for result in results if result.arm == "rise_oracle"}
    rows = []
    for vote in results:
        if vote.arm != "rise_majority" or vote.seed not in oracles:
            continue
        oracle = oracles[vote.seed]
        gain = oracle.peak - oracle.start
        rows.append(
            {
                "seed": vote.seed,
                "start": vote.start,
                "peak": vote.peak,
                "oracle_peak": oracle.peak,
                "share": (vote.peak - vote.start) / gain if gain > 0 else None,
                "maj_start": vote.maj_start,
                "maj_end": vote.maj_end,
            }
        )
    return rows


def compare_arms(
    arms: Iterable[Arm], results: Sequence[RunResult], reference: str = "majority"
) -> list[Row]:
    """Per arm: start, peak and end of its runs, and the time of a step relative to that of the arm
    `reference`.

    An arm without runs has None there. The arms are of one place.
    """
    reference_seconds = _median_step_seconds(results, reference)
    rows = []
    for arm in arms:
        runs = [result for result in results if result.arm == arm.name]
        seconds = _median_step_seconds(results, arm.name)
        relative_seconds = None
        if seconds and reference_seconds and arm.group != "rise":  # those have other batches
            relative_seconds = seconds / reference_seconds
        rows.append(
            {
                "arm": arm.name,
                "group": arm.group,
                "note": arm.note,
                "runs": len(runs),
                "start": _spread([run.start for run in runs]),
                "rise": _spread([run.peak - run.start for run in runs]),
                "peak": _spread([run.peak for run in runs]),
                "end": _spread([run.end for run in runs]),
                "maj_end": _spread([run.maj_end for run in runs]),
                **_failures(runs),
                "relative_seconds": relative_seconds,
                "tokens_per_step": _mean_of_known(run.tokens_per_step for run in runs),
            }
        )
    return rows


def labels_over_time(arms: Iterable[Arm], results: Sequence[RunResult]) -> list[Row]:
    """Per arm: the accuracy of the vote and of the labels after each quarter of its runs.

    Means over the seeds, of the last evaluation at or before that quarter. None without a figure.
    """
    rows = []
    for arm in arms:
        runs = [result for result in results if result.arm == arm.name and result.labels]
        row: Row = {"arm": arm.name, "vote": [], "label": []}
        for quarter in (1, 2, 3, 4):
            points = [_at_quarter(run.labels, quarter) for run in runs]
            row["vote"].append(_mean_of_known(point.vote for point in points if point))
            row["label"].append(_mean_of_known(point.label for point in points if point))
        rows.append(row)
    return rows


def turn_scores(arms: Iterable[Arm], results: Sequence[RunResult]) -> list[Row]:
    """Per arm whose evaluations score later turns: means over the seeds.

    TURN_SCORES at the start and at the end; `gain`, what the later turns add to the accuracy at the
    end; the accuracy of all labels, and of those that the reward function keeps.

    None without a figure. Empty without such an arm.
    """
    rows = []
    for arm in arms:
        runs = [result for result in results if result.arm == arm.name and result.turns]
        if not runs:
            continue
        row: Row = {"arm": arm.name, "runs": len(runs)}
        for name in TURN_SCORES:
            pairs = [run.turns[name] for run in runs if name in run.turns]
            row[name] = [_mean_of_known(pair[place] for pair in pairs) for place in (0, 1)]
        gains = [
            run.turns["acc@final"][1] - run.turns["acc@first"][1]
            for run in runs
            if "acc@final" in run.turns
        ]
        row["gain"] = _spread(gains)
        row["label_accuracy"] = _mean_of_known(run.mean_label_accuracy for run in runs)
        row["kept_label_accuracy"] = _mean_of_known(run.mean_kept_label_accuracy for run in runs)
        rows.append(row)
    return rows


def failures_by_arm(arms: Sequence[Arm], results: Sequence[RunResult]) -> list[Row]:
    """Per name of an arm: in how many runs of all models and tasks the accuracy fails."""
    rows = []
    for name in dict.fromkeys(arm.name for arm in arms):
        runs = [result for result in results if result.arm == name]
        rows.append({"arm": name, "runs": len(runs), **_failures(runs)})
    return rows


def alarm_times(results: Sequence[RunResult]) -> list[Row]:
    """Per rule of RULES: how many steps before a fall it alarms, and its false alarms.

    All rules judge the same looks. Runs in which the monitor acted are left out, and so are runs
    whose rows do not have what a rule needs.
    """
    runs = _runs_without_action(results)
    rows = []
    for rule in RULES:
        judged = [run for run in runs if rule in run.rule_steps]
        rows.append(_lead_row(rule, judged, lambda run, rule=rule: run.rule_steps[rule]))
    return rows


def warning_times(results: Sequence[RunResult]) -> list[Row]:
    """Per sign: how many steps before a fall it warned, and how often without a fall.

    Runs in which the monitor acted are left out.
    """
    runs = _runs_without_action(results)
    signs = {sign for run in runs for sign in run.warning_steps} - {ALARM}
    return [
        _lead_row(sign, runs, lambda run, sign=sign: run.warning_steps.get(sign))
        for sign in sorted(signs)
    ]


def _runs_without_action(results: Sequence[RunResult]) -> list[RunResult]:
    """The runs in which the monitor did not act. A fall that it prevents would look false."""
    return [result for result in results if result.actions is None]


def _lead_row(
    name: str, runs: Sequence[RunResult], first_step: Callable[[RunResult], int | None]
) -> Row:
    """How a signal fares on these runs. first_step: where a run has it first."""
    falling = [run for run in runs if run.fall_step is not None]
    stable = [run for run in runs if run.fall_step is None]
    leads = []
    for run in falling:
        step = first_step(run)
        if step is not None:
            assert run.fall_step is not None
            leads.append(run.fall_step - step)
    return {
        "signal": name,
        "falls": len(falling),
        "early": sum(lead > 0 for lead in leads),
        "late": sum(lead <= 0 for lead in leads),
        "missed": len(falling) - len(leads),
        "lead": _median_and_range(leads),
        "stable": len(stable),
        "false_alarms": sum(first_step(run) is not None for run in stable),
        "stable_looks": sum(run.looks for run in stable),
    }


def early_stopping(results: Sequence[RunResult]) -> list[Row]:
    """What stopping by the monitor loses against the best evaluation, which needs labels.

    Runs of the arm majority went on after the alarm. Their accuracy is that of the last evaluation
    at or before the monitor's best step. Runs of majority_stop did stop. Their best evaluation is
    the better of their own and the plain vote's with the same seed.
    """
    votes = {result.seed: result for result in results if result.arm == "majority"}
    rows = [
        _stopping_loss(vote, vote.best_probe_step, vote.best_probe_pass1, vote)
        for vote in votes.values()
    ]
    for result in results:
        if result.arm == "majority_stop":
            vote = votes.get(result.seed, result)
            best = max(result, vote, key=lambda run: run.peak)
            rows.append(_stopping_loss(result, result.restored_step, result.end, best))
    return rows


def winner(arm_rows: Sequence[Row], seeds: int) -> Row | None:
    """The label-free reward function with the highest mean end, and its margin to the next one.

    Only arms with a run of every seed take part. Arms with more steps do not.
    """
    candidates = [
        row
        for row in arm_rows
        if row["group"] in ("collapse", "reward")
        and row["runs"] == seeds
        and row["arm"] != "oracle"
        and not row["arm"].endswith("_long")
    ]
    ranking = sorted(candidates, key=lambda row: row["end"]["mean"], reverse=True)
    if not ranking:
        return None
    first = ranking[0]
    result: Row = {"arm": first["arm"], "end": first["end"], "next": None, "margin": None}
    if len(ranking) > 1:
        second = ranking[1]
        result["next"] = second["arm"]
        result["margin"] = first["end"]["mean"] - second["end"]["mean"]
    return result


def _stopping_loss(run: RunResult, step: int | None, pass1: float | None, best: RunResult) -> Row:
    return {
        "arm": run.arm,
        "seed": run.seed,
        "alarm_step": run.warning_steps.get(ALARM),
        "step": step,
        "pass1": pass1,
        "best_step": best.peak_step,
        "best_pass1": best.peak,
        "loss": None if pass1 is None else best.peak - pass1,
    }


def _failures(runs: Sequence[RunResult]) -> dict[str, int]:
    """In how many of the runs the accuracy collapses, falls, ends below its start, and both of
    these.
    """
    return {
        "collapses": sum(run.collapse_step is not None for run in runs),
        "falls": sum(run.fall_step is not None for run in runs),
        "ends_below_start": sum(run.end < run.start for run in runs),
        "falls_below_start": sum(run.fall_step is not None and run.end < run.start for run in runs),
    }


def _at_quarter(points: Sequence[Labels], quarter: int) -> Labels | None:
    """The last point in the first `quarter` quarters of a run."""
    last_step = points[-1].step * quarter / 4
    return next((point for point in reversed(points) if point.step <= last_step), None)


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _median_step_seconds(results: Sequence[RunResult], arm: str) -> float | None:
    seconds = [result.seconds_per_step for result in results if result.arm == arm]
    return statistics.median(seconds) if seconds else None


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def _median_and_range(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
