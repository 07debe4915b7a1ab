"""TRL trains the quickstart's model on its own votes: examples/trl_grpo.py."""

from __future__ import annotations

import re
import runpy

import pytest

from support.paths import ROOT

pytest.importorskip("trl")


@pytest.mark.filterwarnings("ignore")  # transformers and TRL warn about their own code
def test_majority_reward_without_labels_improves_held_out_accuracy(tmp_path, capsys):
    """A quarter of the example's steps, from the embedded model's warm start.

    The warm start takes two minutes if it is not cached.
    """
    main = runpy.run_path(str(ROOT / "examples" / "trl_grpo.py"))["main"]
    main(["--steps", "10", "--output", str(tmp_path)])
    output = capsys.readouterr().out
    match = re.search(r"accuracy: (\S+) before, (\S+) after 10 steps", output)
    start = float(match[1])
    end = float(match[2])
    assert 0.3 < start < 0.7
    # Three times the noise of the difference of two means of 1024 samples.
    assert end > start + 0.066
