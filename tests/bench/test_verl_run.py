"""The checks of make verl-run. The run itself takes minutes, so it is no test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verl_run import Rise, SharedStep, checks, read_rise

STEP = SharedStep(
    step=1,
    loss=0.1,
    verl_loss=0.1,
    gradient_norm=0.5,
    verl_gradient_norm=0.5,
    clip_fraction=0.01,
)
RISE = Rise(before=0.4, after=0.5, standard_error=0.02, prompts=2, samples=2)


def failures(step: SharedStep, gap: float, rise: Rise) -> list[str]:
    _, _, lines = checks([STEP, step], gap, rise)
    return [line[0] for line in lines if line[-1] != "holds"]


@pytest.mark.parametrize(
    "step, gap, rise, failure",
    [
        ({"loss": 0.10002}, 0.0, {}, "loss, ours - verl"),
        ({"gradient_norm": 0.50001}, 0.0, {}, "gradient norm, ours / verl - 1"),
        ({"gradient_norm": float("nan")}, 0.0, {}, "gradient norm, ours / verl - 1"),
        ({}, 0.01, {}, "probabilities, vLLM - actor"),
        ({}, 0.0, {"after": 0.44}, "held-out pass@1"),
    ],
)
def test_a_figure_outside_fails(
    step: dict[str, Any], gap: float, rise: dict[str, Any], failure: str
):
    assert failures(STEP, 0.0, RISE) == []
    assert failures(replace(STEP, **step), gap, replace(RISE, **rise)) == [failure]


def test_a_run_without_clipped_ratios_fails():
    _, _, lines = checks([replace(STEP, clip_fraction=0.0)], 0.0, RISE)
    assert [line[0] for line in lines if line[-1] != "holds"] == ["clipped ratios"]


def test_rise_of_verls_files(tmp_path: Path):
    """Two prompts of two samples, whose pass@1 goes from [0, 0.5] to [1, 1]."""
    samples = {0: [("a", 0.0), ("b", 1.0), ("a", 0.0), ("b", 0.0)], 3: [("b", 1.0), ("a", 1.0)] * 2}
    for step, rows in samples.items():
        lines = [json.dumps({"input": prompt, "acc": acc}) for prompt, acc in rows]
        (tmp_path / f"{step}.jsonl").write_text("\n".join(lines))
    # The differences 1 and 0.5 have the standard deviation 0.5 / sqrt(2).
    expected = Rise(before=0.25, after=1.0, standard_error=0.25, prompts=2, samples=2)
    rise = read_rise(tmp_path, 3)
    assert rise.standard_error == pytest.approx(0.25)
    assert replace(rise, standard_error=0.25) == expected
