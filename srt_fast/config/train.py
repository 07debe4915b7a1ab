"""Settings of the training step, the evaluation, the logs and the checkpoints."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from srt_fast.config.fields import (
    Beta,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Table,
    section,
)

PolicyGradientName = Literal[
    "grpo", "dapo", "dr_grpo", "bnpo", "gspo", "cispo", "sapo", "rloo", "reinforce", "srt"
]
"""The presets of srt_kernels.Objective."""
PairName = Literal["dpo", "scpo"]
"""The objectives of preference pairs."""
ObjectiveName = Literal[PolicyGradientName, "sft", PairName]
"""What train.objective can be."""
PAIR_OBJECTIVES = get_args(PairName)
SUPERVISED_OBJECTIVES = ("sft", *PAIR_OBJECTIVES)
"""The objectives that train on what the reward prefers, not on advantages."""
AdvantageKind = Literal["grpo", "mean", "rloo", "batch"]
"""The kinds of srt_kernels.group_advantage."""
OptimizerName = Literal["adamw", "adamw_fused", "adamw_8bit"]
"""The kinds of srt_fast.optimizer."""


@section("train.")
class TrainConfig:
    """The training step."""

    steps: Positive = 100
    """Steps to train for. One step samples one batch."""
    prompts_per_step: Positive = 64
    """Prompts of one step."""
    minibatches: Positive = 1
    """Optimizer updates per step. 1 is on-policy: the ratio is exactly 1."""
    objective: ObjectiveName = "srt"
    """The loss. A preset of srt_kernels.Objective: its means are over the whole mini-batch, also
    over several micro-batches, and also for "bnpo". Or without advantages: "sft", cross-entropy of
    the completions with the highest reward; "dpo", preference pairs of the highest and the lowest
    reward; "scpo", the same with weights and a cross-entropy term (docs/rewards.md)."""
    objective_overrides: Table = Field(default_factory=dict)
    """Fields of the preset to change, such as clip_high=0.28 or kl=k3 kl_coef=0.001."""
    advantage: AdvantageKind = "rloo"
    """Group advantage: grpo (mean and std), mean (Dr. GRPO), rloo (leave one out), or batch
    (REINFORCE++ baseline)."""
    turn_weights: tuple[NonNegativeFloat, ...] = ()
    """A factor of the advantages of each turn, for reward functions of episodes: 0 1 trains the
    second turn only. None given: 1 each. A KL term of the objective is not scaled."""
    reward_kl_coef: NonNegativeFloat = 0.0
    """Weight of a KL penalty in the reward: the k3 estimate of the KL to the starting model, summed
    over the completion. 0: off."""
    router_aux_loss_coef: NonNegativeFloat = 0.0
    """Weight of the load-balancing loss of a mixture of experts (arXiv 2101.03961, in transformers'
    form). 0: off. Otherwise all rollouts are trained on, those with advantage 0 too, but for those
    that the reward function leaves out. Each micro-batch has a loss of its own, weighted by its
    tokens. So this part depends on token_budget and on the number of ranks."""
    optimizer: OptimizerName = "adamw"
    """"adamw": PyTorch's AdamW, on CUDA in one kernel. "adamw_fused": on a CPU too, which
    dist.cpu_offload takes. "adamw_8bit": torchao's, with 2 bytes of state a parameter in place of
    8. It needs float32 weights, the extra `optim` and a C++ compiler, and its results depend on the
    number of ranks."""
    lr: PositiveFloat = 1e-6
    """Learning rate of AdamW."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Betas of AdamW."""
    grad_clip: PositiveFloat = 1.0
    """Largest gradient norm. A larger gradient is scaled down to it."""
    token_budget: Positive = 16384
    """Tokens in one micro-batch of the training pass, prompts and completions together."""
    shared_prompt: bool = True
    """Compute a prompt once for all of its completions in a micro-batch, in every pass over
    rollouts. The results are the same up to rounding. A model that cannot do that computes it for
    each completion, and the run says so."""
    rounds: NonNegative = 0
    """Offline rounds of objectives "sft", "dpo" and "scpo": the steps are cut into so many rounds,
    and the first step of a round samples for all of its steps. 0: every step samples its own."""
    dpo_beta: PositiveFloat = 0.1
    """Beta of "dpo" and "scpo": how strongly the reference holds the policy. The reference is the
    policy that sampled the pairs."""
    scpo_nll: NonNegativeFloat = 1.0
    """Weight of the cross-entropy of the preferred completion in "scpo"."""
    seed: NonNegative = 0
    """Seed of prompts and sampling."""


@section("evaluation.")
class EvalConfig:
    """Evaluation on held-out prompts: pass@1, pass@k, maj@k."""

    every: NonNegative = 25
    """Evaluate every so many steps. 0: only at the start and at the end."""
    prompts: Positive = 256
    """Held-out prompts of the evaluation. They are never trained on (but see task.test_time)."""
    samples: Positive = 8
    """Completions per held-out prompt (k)."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature. 0 is greedy, with one sample per prompt."""


@section("log.")
class LogConfig:
    """What a run writes beside metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard event files."""
    tracker: Literal["none", "wandb", "trackio"] = "none"
    """Also send metrics to this service. Its package must be installed."""
    project: str = "srt-fast"
    """Project name for the tracker."""
    sample_every: NonNegative = 10
    """Keep sample completions every so many steps. 0: never."""
    mfu: bool = True
    """Count the model FLOPs of sampling, scoring and training, and compare their time with the rate
    of matrix products and the bandwidth of memory. Both are measured at the start, in half a
    second. A model whose FLOPs are not understood gets no such figures, and one line says so."""


@section("checkpoint.")
class CheckpointConfig:
    """Checkpoints to resume from."""

    every: NonNegative = 50
    """Write a checkpoint every so many steps. 0: only at the end and on SIGINT or SIGTERM."""
    keep: Positive = 2
    """Number of checkpoints to keep. The oldest are deleted."""
    asynchronous: bool = False
    """Write checkpoints while the next steps run. That takes host memory for a copy of weights and
    optimizer state: 12 bytes a parameter in float32, 14 in bfloat16, over all ranks. The last
    checkpoint and that of SIGINT or SIGTERM are written at once."""
