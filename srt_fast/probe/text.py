"""The figures of a probe as rows of text, which the terminal and the page show."""

from __future__ import annotations

from typing import NamedTuple

from srt_fast.probe.advice import Choice
from srt_fast.probe.figures import Estimate, GoldFigures, ShareRow
from srt_fast.probe.result import Probe

FIGURE_HEAD = ("", "value", "standard error", "meaning")


class Figure(NamedTuple):
    """One row of a table of figures, with the columns of FIGURE_HEAD."""

    name: str
    value: str
    error: str
    meaning: str


def title(probe: Probe) -> str:
    """Model and task."""
    task = probe.settings["task"]
    name = task["name"] or task["kind"]
    return f"Can {probe.settings['model']['path']} train on its own vote on {name}?"


def lead(probe: Probe) -> str:
    """What was sampled."""
    parts = [
        f"{probe.prompts:,} training prompts x {probe.samples} samples",
        f"temperature {probe.settings['sampling']['temperature']:g}",
    ]
    if probe.prompts_too_long:
        parts.append(f"{probe.prompts_too_long:,} prompts were too long and left out")
    if probe.interrupted:
        parts.append(f"ended early by {probe.interrupted}")
    return "; ".join(parts)


def figure_tables(probe: Probe) -> dict[str, list[Figure]]:
    """The tables of figures by their headings."""
    tables = {"Answers": _answers(probe), "The vote, without labels": _vote(probe)}
    if probe.gold:
        heading = f"Against gold answers of {probe.gold.prompts:,} prompts"
        tables[heading] = _gold(probe.gold, probe.samples)
    tables["Cost on this machine"] = _cost(probe)
    return tables


def share_rows(gold: GoldFigures) -> list[tuple[str, str, str, str]]:
    """Range of the share, prompts, accuracy of their majorities and its standard error."""
    rows = []
    for row in gold.by_share:
        value, error = ("-", "-") if row.accuracy is None else _texts(row.accuracy)
        rows.append((_range(row), f"{row.prompts:,}", value, error))
    return rows


def advice_rows(probe: Probe) -> list[tuple[str, str, str]]:
    """Question, answer and reason."""
    advice = probe.advice
    choices = {
        "sampling.group_size": advice.group_size,
        "train.prompts_per_step": advice.prompts_per_step,
        "reward.kind": advice.design,
    }
    rows = [("verdict", advice.verdict, advice.reason)]
    return rows + [(name, _value(choice), choice.reason) for name, choice in choices.items()]


def _answers(probe: Probe) -> list[Figure]:
    length = probe.sampling.tokens / probe.sampling.completions
    longest = probe.settings["sampling"]["max_new_tokens"]
    return [
        _figure("without an answer", probe.unread, "fraction of the completions"),
        _figure("truncated", probe.truncated, f"completions that reached {longest:,} tokens"),
        Figure("length", f"{length:.1f}", "", "mean tokens of a completion"),
    ]


def _vote(probe: Probe) -> list[Figure]:
    vote, half = probe.vote, probe.samples // 2
    rows = [
        _figure("vote share", vote.share, "mean share of the majorities"),
        _figure("clear majority", vote.clear, f"prompts on which both votes of {half} agree"),
        Figure(
            "labels right, at most",
            f"{vote.accuracy_bound:.3f}",
            "",
            f"bound of the accuracy of a vote of {half}; nothing bounds it from below",
        ),
        Figure("commonest majority", f"{vote.top_answer:.3f}", "", "prompts that share one answer"),
    ]
    for size, value in vote.repeats.items():
        rows.append(_figure(f"votes of {size} repeat", value, "prompts on which two agree"))
    for size, value in vote.mixed.items():
        rows.append(_figure(f"groups of {size} that train", value, "groups with a gradient"))
    return rows


def _gold(gold: GoldFigures, samples: int) -> list[Figure]:
    rows = [
        _figure("pass@1", gold.pass1, "samples that are right"),
        _figure(f"maj@{samples}", gold.maj, "majorities that are right"),
        _figure("gain", gold.gain, f"maj@{samples} - pass@1"),
        _figure("right if clear", gold.clear_accuracy, "clear majorities that are right"),
        _figure("right if not clear", gold.unclear_accuracy, "other majorities that are right"),
    ]
    relative = "-" if gold.relative_effect is None else f"{gold.relative_effect:.3f}"
    chance = "-" if gold.chance is None else _chance(gold.chance)
    return [
        *rows,
        Figure(
            "effect", relative, "", "first-order rise of pass@1 by the vote; 1: by gold answers"
        ),
        Figure("chance", chance, "", "that this effect is above 0: more truth than error"),
    ]


def _cost(probe: Probe) -> list[Figure]:
    threads = f"{probe.machine['device']}, {probe.machine['threads']} threads"
    rows = [
        Figure(
            "sampling",
            f"{probe.sampling.seconds:.1f} s",
            "",
            f"measured: {probe.sampling.tokens:,} tokens of {probe.sampling.completions:,} "
            f"completions ({threads})",
        )
    ]
    if probe.training is None or probe.step is None:
        reason = "not measured" if probe.interrupted else "no group of the step had a gradient"
        return [*rows, Figure("training step", "-", "", reason)]
    training, step, advice = probe.training, probe.step, probe.advice
    rows.append(
        Figure(
            "training step",
            f"{training.seconds:.1f} s",
            "",
            f"measured: {training.tokens:,} tokens of {training.completions:,} completions",
        )
    )
    seconds = step.seconds_sample + step.seconds_train
    return [
        *rows,
        Figure(
            "a step as advised",
            f"{seconds:.1f} s",
            "",
            f"scaled: {advice.prompts_per_step.value} prompts x {advice.group_size.value}; "
            f"sampling {step.sampled_tokens:,} tokens {step.seconds_sample:.1f} s, training "
            f"{step.trained_tokens:,} tokens {step.seconds_train:.1f} s",
        ),
    ]


def _figure(name: str, value: Estimate | None, meaning: str) -> Figure:
    return Figure(name, *(_texts(value) if value else ("-", "")), meaning)


def _texts(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.3f}", "-" if estimate.error is None else f"{estimate.error:.3f}"


def _chance(chance: float) -> str:
    """A chance without false certainty: the error is not exactly normal."""
    if chance > 0.99:
        return "> 0.99"
    return "< 0.01" if chance < 0.01 else f"{chance:.2f}"


def _range(row: ShareRow) -> str:
    if row.low == row.high:
        return "1, unanimous"
    return f"{row.low:g} to below {row.high:g}"


def _value(choice: Choice) -> str:
    return "none" if choice.value is None else str(choice.value)
