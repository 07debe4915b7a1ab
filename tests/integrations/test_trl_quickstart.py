"""TRL trains the quickstart's model, in small, on its own votes: examples/trl_grpo.py."""

from __future__ import annotations

import re
import runpy

import pytest

from srt_fast.config import override
from srt_fast.config.recipes import quickstart
from support.models import SMALL_WARM_START
from support.paths import ROOT

pytest.importorskip("trl")


@pytest.mark.filterwarnings("ignore")  # transformers and TRL warn about their own code
def test_majority_reward_without_labels_improves_held_out_accuracy(tmp_path, capsys, monkeypatch):
    """The example with sums of one digit and a model that learns them in seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    main = runpy.run_path(str(ROOT / "examples" / "trl_grpo.py"))["main"]
    main.__globals__["quickstart"] = lambda: override(quickstart(), SMALL_WARM_START)
    options = ["--steps", "20", "--prompts", "16", "--learning-rate", "1e-3"]
    main([*options, "--output", str(tmp_path / "trl")])
    output = capsys.readouterr().out
    match = re.search(r"accuracy: (\S+) before, (\S+) after 20 steps", output)
    start = float(match[1])
    end = float(match[2])
    assert 0.2 < start < 0.8  # the band of the warm start, and the noise of few sums
    # Three times the noise of the difference of two means of 1024 samples.
    assert end > start + 0.066
