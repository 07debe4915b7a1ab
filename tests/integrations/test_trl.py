"""Training with SRTGRPOTrainer is training with TRL's GRPOTrainer.

The same model, data and seed give the same parameters and the same logged values.
"""

from __future__ import annotations

import os
import re
import runpy
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import TrainerCallback

from support.paths import ROOT

trl = pytest.importorskip("trl")
from accelerate.state import AcceleratorState  # noqa: E402

from srt_fast.integrations.trl import SRTGRPOTrainer, majority_reward  # noqa: E402
from support.trl import EAGER, OFF_POLICY, check_same, train_both  # noqa: E402
from support.votes import BOXES, VOTES  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and TRL warn about their own code

LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": dict(epsilon_high=0.06),
    "bnpo": dict(delta=1.06),
    "dr_grpo": {},
    "cispo": dict(epsilon_high=1.03),
    "sapo": dict(learning_rate=0.2),
    "vespo": {},
    "luspo": dict(
        importance_sampling_level="sequence", use_bias_correction_kl=False, learning_rate=0.2
    ),
}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_trains_as_in_trl(loss_type, beta, make_trainer):
    settings = OFF_POLICY | dict(loss_type=loss_type, beta=beta, max_steps=20) | LOSSES[loss_type]
    theirs, ours = train_both(make_trainer, **settings)
    assert (ours.objective is None) == (loss_type == "vespo")
    check_same(theirs, ours)

    # The run covers ragged completions, completions that do not train, and clipping.
    log = ours.state.log_history
    generations = [row for row in log if "reward" in row]
    assert any(row["completions/min_length"] < row["completions/max_length"] for row in generations)
    assert any(0 < row["frac_reward_zero_std"] < 1 for row in generations)
    if loss_type not in ("sapo", "vespo"):
        name = "cispo_clip_ratio" if loss_type == "cispo" else "clip_ratio/region_mean"
        assert any(0 < row.get(name, 0) < 1 for row in log)


# Settings, and whether they have an Objective. Six steps are at least two generations.
ACCUMULATED = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)
GSPO = OFF_POLICY | dict(loss_type="grpo", importance_sampling_level="sequence")
SETTINGS: dict[str, tuple[dict[str, Any], bool]] = {
    "on policy": (ACCUMULATED | dict(loss_type="grpo", beta=0.04, temperature=0.7), True),
    "a part of a generation": (ACCUMULATED | OFF_POLICY | dict(loss_type="dapo"), True),
    "minibatches twice": (
        ACCUMULATED | OFF_POLICY | dict(num_iterations=2, loss_type="bnpo"),
        True,
    ),
    "checkpointing": (OFF_POLICY | dict(gradient_checkpointing=True, beta=0.04), True),
    "gspo": (GSPO, True),
    "gspo, biased KL": (GSPO | dict(beta=0.04), False),
    "padded, truncated": (
        OFF_POLICY
        | dict(model_init_kwargs=EAGER, mask_truncated_completions=True, loss_type="dr_grpo"),
        True,
    ),
    "evaluation": (
        OFF_POLICY | dict(eval_strategy="steps", eval_steps=6, per_device_eval_batch_size=16),
        True,
    ),
    "entropy bonus": (ACCUMULATED | dict(entropy_coef=0.1), False),
    "adaptive entropy": (
        OFF_POLICY | dict(use_adaptive_entropy=True, entropy_target=5.5, entropy_coef_delta=0.1),
        False,
    ),
    "masks": (OFF_POLICY | dict(top_entropy_quantile=0.5, off_policy_mask_threshold=1e-3), False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_train_as_in_trl(name, make_trainer):
    settings, has_objective = SETTINGS[name]
    theirs, ours = train_both(make_trainer, max_steps=6, **settings)
    assert (ours.objective is not None) == has_objective
    check_same(theirs, ours)


class Annealing(TrainerCallback):
    """Changes the KL and the clip in each step, and the loss in the end."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step + 1
        self.trainer.beta = 0.05 * step
        self.trainer.epsilon_high = 0.01 * step
        self.trainer.loss_type = "bnpo" if step > 4 else "dapo"


def test_settings_that_change_during_training(make_trainer):
    """TRL reads them at every loss."""
    trainers = [
        make_trainer(trainer_type, max_steps=6, beta=0.01, **OFF_POLICY)
        for trainer_type in (trl.GRPOTrainer, SRTGRPOTrainer)
    ]
    for trainer in trainers:
        trainer.add_callback(Annealing(trainer))
        torch.manual_seed(0)
        trainer.train()
    theirs, ours = trainers
    check_same(theirs, ours)


def test_entropy_of_trained_completions(make_trainer):
    """The parameters are the same. Entropies and clip ratios are means over fewer tokens."""
    trainers = [
        make_trainer(SRTGRPOTrainer, options=options, max_steps=6, **OFF_POLICY)
        for options in ({}, {"entropy_of": "trained"})
    ]
    for trainer in trainers:
        torch.manual_seed(0)
        trainer.train()
    of_all, of_trained = trainers
    check_same(of_all, of_trained, left_out=("entropy", "clip_ratio"))
    entropies = [
        [row["entropy"] for row in trainer.state.log_history if "entropy" in row]
        for trainer in trainers
    ]
    assert entropies[0] != entropies[1]


def test_truncated_completions_do_not_vote(make_trainer):
    """Of the answers 1, 2, 2, 1, 2 the second and the third were truncated, and are masked."""
    trainer = make_trainer(
        SRTGRPOTrainer, rewards=majority_reward(), mask_truncated_completions=True
    )
    boxes = [f"\\boxed{{{answer}}}" for answer in (1, 2, 2, 1, 2)]
    ids = [[5, 2], [5, 6], [5, 6], [5, 2], [5, 2]]
    rewards = trainer._calculate_rewards([{"prompt": "a"}] * 5, ["a"] * 5, boxes, ids)
    assert rewards[:, 0].nan_to_num(-1).tolist() == [1, -1, -1, 1, 0]


# ---- two processes ----


def run_in_process(rank: int, port: int, work: Callable, make_trainer: Callable) -> None:
    """Set up one of two processes for accelerate and call work(rank, make_trainer)."""
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    work(rank, make_trainer)
    dist.destroy_process_group()


def vote_and_train(rank: int, make_trainer: Callable) -> None:
    """A group that is split unevenly over the processes, then DDP with half of each group."""
    make_trainer(SRTGRPOTrainer, ddp_backend="gloo")  # initialises torch.distributed
    part = slice(0, 3) if rank == 0 else slice(3, 8)
    prompts = ["a"] * 4 + ["b"] * 4
    assert majority_reward()(prompts[part], BOXES[part]) == VOTES[part]

    theirs, ours = train_both(
        make_trainer,
        rewards=majority_reward("whole"),
        per_device_train_batch_size=2,
        steps_per_generation=2,
        max_steps=4,
        ddp_backend="gloo",
    )
    check_same(theirs, ours)
    generations = [row for row in ours.state.log_history if "vote/share" in row]
    assert len(generations) == 2
    for row in generations:
        assert row["rewards/majority_reward/mean"] == pytest.approx(row["vote/share"])


@pytest.mark.skipif(
    torch.get_num_threads() > 1,
    reason="forks, which OpenMP's threads do not survive: OMP_NUM_THREADS=1",
)
def test_two_processes(make_trainer):
    """Forked: importing TRL twice takes longer than the rest of the test."""
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    arguments = (port, vote_and_train, make_trainer)
    mp.start_processes(run_in_process, arguments, nprocs=2, start_method="fork")


# ---- the example ----


def test_example(ragged, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "trl_grpo.py"))["main"]
    sizes = ["--steps", "2", "--prompts", "2", "--held-out", "4"]
    main(["--model", ragged, *sizes, "--output", str(tmp_path)])
    pattern = r"held-out accuracy: [01]\.\d{3} before, [01]\.\d{3} after 2 steps"
    assert re.search(pattern, capsys.readouterr().out)
