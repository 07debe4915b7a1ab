"""TRL trains the quickstart's model on its own votes, as examples/trl_grpo.py does it."""

import re
import runpy

import pytest

from support.paths import ROOT

pytest.importorskip("trl")


@pytest.mark.filterwarnings("ignore")  # what transformers and TRL deprecate in themselves
def test_majority_reward_without_labels_improves_held_out_accuracy(tmp_path, capsys):
    """A quarter of the example's steps, from a warm start of the embedded model as it comes (two minutes if not cached)."""
    main = runpy.run_path(str(ROOT / "examples" / "trl_grpo.py"))["main"]
    main(["--steps", "10", "--output", str(tmp_path)])
    before, after = map(
        float,
        re.search(
            r"accuracy: (\S+) before, (\S+) after 10 steps", capsys.readouterr().out
        ).groups(),
    )
    assert 0.3 < before < 0.7  # the warm start is judged by 256 single samples
    assert (
        after > before + 0.066
    )  # three times the noise of a difference of two means of 1024 samples
