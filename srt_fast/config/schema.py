"""A run's whole configuration: frozen, keyword-only, checked when it is made.

Types and ranges are checked by pydantic, also when a Config is built in Python or read from a file, so
that a bad value is an error that names the field before anything loads. Recipes (recipes.py) are functions that
return a whole Config; the command line and YAML or TOML files override single fields of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from srt_fast.config.fields import (
    Beta,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Table,
    _frozen,
)

if TYPE_CHECKING:
    from srt_kernels.objective.objective import Objective


REWARD_KINDS = tuple(
    sorted(
        file.stem
        for file in (Path(__file__).parents[1] / "rewards" / "designs").glob("*.py")
        if file.stem not in ("__init__", "base")
    )
)
"""The reward designs: the files of srt_fast/feedback."""


@_frozen
class ModelConfig:
    """Which causal language model to train, and in which precision."""

    section: ClassVar[str] = "model."

    path: str = "quickstart"
    """"quickstart" (the embedded tiny model), a local Hugging Face folder, a .gguf file, or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the trained weights. bfloat16 loses updates below about 1/256 of a weight; keep float32 unless memory forbids."""
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    """Type of the forward pass over float32 weights. "auto": bfloat16 on CUDA, off on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto": CUDA where torch sees a device, else the CPU."""
    kernels: Literal["auto", "torch", "liger"] = "auto"
    """Which kernels compute RMSNorm, RoPE and SwiGLU. "torch": PyTorch's. "liger": liger-kernel's,
    or an error that says why they cannot be used. "auto": liger-kernel's on CUDA if it is installed
    and supports the model, else PyTorch's."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave off unless you have read that code."""


@_frozen
class WarmStartConfig:
    """Supervised warm start of the embedded model (only where model.path is "quickstart")."""

    section: ClassVar[str] = "warm_start."

    seed: NonNegative = 0
    """Seed of its weights and data; apart from train.seed, so that runs of several seeds start from one model."""
    pass1_low: Fraction = 0.43
    """The warm start stops when held-out pass@1 at temperature 1 lies between pass1_low and pass1_high."""
    pass1_high: Fraction = 0.6
    """Upper end of that band."""
    hidden_size: Positive = 128
    """Width of the Llama model (4 heads)."""
    layers: Positive = 4
    """Number of layers."""
    batch_size: Positive = 128
    """Worked sums in one supervised step."""
    lr: PositiveFloat = 3e-3
    """Peak learning rate of AdamW (linear warm-up over 100 steps)."""
    slip: Fraction = 0.15
    """Chance that a column of a worked sum gets a random digit. Sloppy data, as the web's is: a sample is often wrong
    where the majority is right, so the vote has room to help."""
    max_steps: Positive = 4000
    """Give up with an error if the band is not reached by then."""

    def __post_init__(self):
        if self.pass1_low >= self.pass1_high:
            raise ValueError(
                f"warm_start.pass1_low: expected less than pass1_high, got {self.pass1_low} >= {self.pass1_high}"
            )


@_frozen
class TaskConfig:
    """Where the prompts come from, how they are worded, and how a final answer is read."""

    section: ClassVar[str] = "task."

    kind: Literal["arithmetic", "reasoning_gym", "jsonl", "parquet", "datasets"] = "arithmetic"
    """"arithmetic" (the embedded sums), a reasoning-gym dataset, a JSONL or Parquet file, or a set of the `datasets`
    library."""
    name: str | None = None
    """Dataset name (reasoning_gym, datasets) or file path (jsonl, parquet). Not used by arithmetic."""
    params: Table = Field(default_factory=dict)
    """Settings of the set: arithmetic (max_digits), reasoning-gym difficulty (min_terms ...), or arguments of
    datasets.load_dataset."""
    size: NonNegative = 0
    """Number of training prompts to use; 0 means all (endless for procedural sets)."""
    prompt_column: str = "problem"
    """Column that holds the prompt (jsonl, parquet, datasets)."""
    gold_column: str | None = None
    """Column that holds the gold answer, for metrics only; none means that accuracy cannot be reported."""
    split: str = "train"
    """Split of a `datasets` set to train on."""
    eval_name: str | None = None
    """Held-out file, or split of the `datasets` set. None: hold out prompts of the training set."""
    test_time: bool = False
    """Test-time training: evaluate on the training prompts themselves (jsonl, parquet, datasets)."""
    template: str = "{prompt}"
    """Wording of the user message or raw prompt; {prompt} stands for the task's prompt."""
    system: str | None = None
    """System message, with chat templates."""
    chat: bool = False
    """Wrap the prompt in the tokenizer's chat template."""
    answer_rule: Literal["boxed", "tag", "last_number", "whole"] = "boxed"
    """Where the final answer is: the last \\boxed{...}, the last <answer>...</answer>, the last number, or the whole text."""
    verifier: Literal["exact", "task", "math_verify"] = "exact"
    """How metrics compare an answer with gold: equal canonical forms, reasoning-gym's own scorer, or math-verify (symbolic)."""

    def __post_init__(self):
        if self.kind != "arithmetic" and not self.name:
            raise ValueError(
                f"task.name: expected a dataset name or a file path with task.kind={self.kind!r}, got none"
            )
        if self.test_time and (self.eval_name or self.kind in ("arithmetic", "reasoning_gym")):
            raise ValueError(
                "task.test_time: expected a jsonl, parquet or datasets task without eval_name, "
                f"got kind {self.kind!r}, eval_name {self.eval_name!r}"
            )
        if self.template.count("{prompt}") != 1:
            raise ValueError(
                f"task.template: expected {{prompt}} exactly once, got {self.template!r}"
            )
        if self.verifier == "task" and self.kind != "reasoning_gym":
            raise ValueError(
                f"task.verifier: 'task' needs task.kind='reasoning_gym', got kind {self.kind!r}"
            )
        if self.system is not None and not self.chat:
            raise ValueError(
                "task.system: expected task.chat=True with a system message, got chat=False"
            )


@_frozen
class SamplingConfig:
    """How completions are sampled for training."""

    section: ClassVar[str] = "sampling."

    group_size: Annotated[int, Field(ge=2)] = 16
    """Completions per prompt, at least 2: a group of one has no majority and no advantage."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; the loss uses the same one."""
    max_prompt_tokens: Positive = 1024
    """Longest prompt; a longer one is dropped and counted, and an error when all are."""
    max_new_tokens: Positive = 1024
    """Longest completion; one that is cut there is counted (see reward.truncated)."""
    max_sequences: Positive = 512
    """Sequences that are sampled at once: bounds the KV cache."""
    engine: Literal["auto", "hf", "vllm"] = "auto"
    """"hf": the trained model itself. "vllm": vLLM with the weights of every step, its log-probs
    checked against the trainer's (see vllm). "auto": vLLM where it is installed; config.json says which it was."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling in training; 1 is off. Needs allow_truncation."""
    top_k: NonNegative = 0
    """Sample from the k likeliest tokens in training; 0 is off. Needs allow_truncation."""
    min_p: Fraction = 0.0
    """Leave out tokens less likely than this part of the likeliest one, in training; 0 is off. Needs allow_truncation."""
    allow_truncation: bool = False
    """Accept what top_p, top_k and min_p do: the sampler renormalises over fewer tokens than the trainer does, which biases
    the ratio of the two."""

    def __post_init__(self):
        used = [
            f"{name}={value}"
            for name, value, off in (
                ("top_p", self.top_p, 1),
                ("top_k", self.top_k, 0),
                ("min_p", self.min_p, 0),
            )
            if value != off
        ]
        if used and not self.allow_truncation:
            raise ValueError(
                f"sampling.allow_truncation: expected True with {', '.join(used)}, because truncated sampling "
                "biases the ratio of trainer and sampler, got False"
            )


@_frozen
class VLLMConfig:
    """The vLLM engine (only where sampling.engine is "vllm", or "auto" and vLLM is installed)."""

    section: ClassVar[str] = "vllm."

    mode: Literal["colocate", "server"] = "colocate"
    """"colocate": in this process, on the trainer's device. "server": engines of their own (`vllm serve`), over HTTP."""
    urls: tuple[str, ...] = ()
    """Servers to use, such as http://localhost:8000 (mode server); prompts are spread over them. README says how to start one."""
    transfer: Literal["auto", "nccl", "disk"] = "auto"
    """How weights reach servers: "nccl", or "disk" (a folder that both sides see). "auto": nccl where the model is on CUDA."""
    transfer_dir: str | None = None
    """Folder for transfer "disk". None: weights/ in the run's folder, srt-fast-weights in the temporary one for srt-fast eval."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.45
    """Part of the GPU that vLLM's weights and KV cache may take (colocate)."""
    kv_cache_gib: PositiveFloat | None = None
    """Size of the KV cache in GiB. None: what gpu_memory_utilization leaves on a GPU, 1 on a CPU."""
    sleep: bool = True
    """Free vLLM's weights and KV cache during the training pass (colocate, GPU)."""
    one_step_off: bool = False
    """Sample the next batch while this one trains, with the weights of the step before: for engines beside the trainer's
    device. Unless train.objective_overrides says otherwise, the loss then corrects by token_truncate."""
    check_prompts: Positive = 4
    """Held-out prompts whose sampled tokens both sides score after every sync."""
    check_tokens: Positive = 32
    """Longest completion in that check."""
    max_logprob_mismatch: PositiveFloat | None = None
    """Largest difference, in nats, of a token's log-prob between vLLM and the trainer; a larger one stops the run.
    None: 1e-3 in float32, no bar in bfloat16."""
    mean_logprob_mismatch: PositiveFloat | None = None
    """The same of the mean difference. None: 0.1 in bfloat16, no bar in float32."""
    timeout: PositiveFloat = 600.0
    """Seconds to wait for the next finished prompt, or a server's answer, before the engine counts as stuck."""
    start_timeout: PositiveFloat = 1800.0
    """Seconds that the engine may take to start or to load weights."""
    engine_args: Table = Field(default_factory=dict)
    """Further arguments of vllm.LLM (colocate), such as enforce_eager=true."""

    def __post_init__(self):
        if self.mode == "server" and not self.urls:
            raise ValueError(
                "vllm.urls: expected at least one server with vllm.mode='server', got none"
            )
        if self.mode == "colocate" and self.urls:
            raise ValueError(
                f"vllm.mode: expected 'server' with vllm.urls, got 'colocate' and {', '.join(self.urls)}"
            )
        if wrong := [url for url in self.urls if not url.startswith(("http://", "https://"))]:
            raise ValueError(f"vllm.urls: expected http://host:port, got {', '.join(wrong)}")


@_frozen
class RewardConfig:
    """The reward design."""

    section: ClassVar[str] = "reward."

    kind: Literal[REWARD_KINDS] = "ema"
    """Which design of srt_fast/feedback: ema (agreement with the vote of a moving-average teacher), pool (its and the
    policy's), frozen (the starting model's), majority (the policy's own), soft, threshold ...; oracle (gold). docs/reward.md
    compares them."""
    params: Table = Field(default_factory=dict)
    """Settings of the design, such as tau=0.6 (threshold) or fraction=0.3 (easiest)."""
    resample: NonNegative = 0
    """Sample up to so many further batches until train.prompts_per_step prompts are not masked by the design (threshold,
    easiest)."""
    share_over: Literal["all", "valid"] = "all"
    """Vote share counts over all rollouts of a group, or over those with an answer. "all": silence lowers confidence."""
    truncated: Literal["vote", "no_answer", "mask"] = "vote"
    """A completion cut at max_new_tokens: votes if it has an answer, has no answer, or is also left out of the loss."""
    audit_groups: NonNegative = 0
    """Groups per step whose votes math-verify checks in a process of its own (audit.jsonl). Changes no step and delays none."""


@_frozen
class CurriculumConfig:
    """Which prompts count more, and supervised steps between the others."""

    section: ClassVar[str] = "curriculum."

    head_tail: NonNegativeFloat = 0.0
    """Weigh a prompt by (1 - vote share) to this power, so that hard ones count more than easy ones; 0 is off."""
    supervised_every: NonNegative = 0
    """Every so many steps one supervised step on the majority's completions where the vote was strong but rare; 0: never."""
    supervised_share: Fraction = 0.5
    """Rare: the majority's share is at most this."""
    supervised_lead: PositiveFloat = 2.0
    """Strong: the majority has at least so many times the votes of the next answer."""


@_frozen
class MonitorConfig:
    """Watching for collapse."""

    section: ClassVar[str] = "monitor."

    action: Literal["log", "stop", "rollback", "freeze"] = "log"
    """What an alarm does beside being logged: "stop" ends the run with the best weights, "rollback" goes back to them and
    halves the learning rate (three times, then stops), "freeze" goes on with the starting model's votes as labels."""
    every: NonNegative = 5
    """Sample the monitor's held-out prompts every so many steps; 0: never, and then actions have nothing to choose by."""
    prompts: Positive = 64
    """Held-out prompts for the monitor, none of those of the evaluation where there are enough."""
    samples: Positive = 4
    """Completions of each."""
    labels: Literal["start", "gold"] = "start"
    """What they are compared with: the starting model's votes, which needs no labels, or gold answers."""

    def __post_init__(self):
        if self.action != "log" and not self.every:
            raise ValueError(
                f"monitor.every: expected at least 1 with monitor.action={self.action!r}, got 0"
            )


@_frozen
class TrainConfig:
    """The policy-gradient step."""

    section: ClassVar[str] = "train."

    steps: Positive = 100
    """Optimizer batches to train for."""
    prompts_per_step: Positive = 64
    """Prompts sampled for one step."""
    minibatches: Positive = 1
    """Optimizer updates per batch. 1 is on-policy: the ratio is exactly 1."""
    objective: Literal[
        "grpo", "dapo", "dr_grpo", "bnpo", "gspo", "cispo", "sapo", "rloo", "reinforce", "srt"
    ] = "srt"
    """Preset of srt_kernels.Objective. Its means are over the whole mini-batch, over micro-batches too (also "bnpo")."""
    objective_overrides: Table = Field(default_factory=dict)
    """Fields of the preset to change, such as clip_high 0.28, kl k3, kl_coef 0.001."""
    advantage: Literal["grpo", "mean", "rloo", "batch"] = "rloo"
    """Group advantage: grpo (mean and std), mean (Dr. GRPO), rloo (leave one out), batch (REINFORCE++ baseline)."""
    reward_kl_coef: NonNegativeFloat = 0.0
    """Weight of the k3 KL to the starting model, summed over the completion, taken off the reward (the paper's RLOO)."""
    lr: PositiveFloat = 1e-6
    """Learning rate of AdamW."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Shape of the learning rate after warm-up."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW weight decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW betas."""
    grad_clip: PositiveFloat = 1.0
    """Gradient norm is clipped to this."""
    token_budget: Positive = 16384
    """Tokens (prompt and completion) in one micro-batch of the training pass."""
    seed: NonNegative = 0
    """Seed of prompts and sampling."""


@_frozen
class EvalConfig:
    """Evaluation on held-out prompts: pass@1, pass@k, maj@k."""

    section: ClassVar[str] = "evaluation."

    every: NonNegative = 25
    """Evaluate every so many steps; 0: only at start and end."""
    prompts: Positive = 256
    """Held-out prompts; they are never trained on."""
    samples: Positive = 8
    """Completions per held-out prompt (k)."""
    temperature: NonNegativeFloat = 1.0
    """0 is greedy, and then one sample per prompt is drawn."""


@_frozen
class LogConfig:
    """What is written beside metrics.jsonl, which always is."""

    section: ClassVar[str] = "log."

    tensorboard: bool = True
    """Write TensorBoard event files."""
    tracker: Literal["none", "wandb", "trackio"] = "none"
    """Also send metrics to this service (its package must be installed)."""
    project: str = "srt-fast"
    """Project name for the tracker."""
    sample_every: NonNegative = 10
    """Keep sample completions every so many steps; 0: none."""


@_frozen
class CheckpointConfig:
    """Checkpoints to resume from."""

    section: ClassVar[str] = "checkpoint."

    every: NonNegative = 50
    """Write one every so many steps; 0: only at the end and on SIGINT or SIGTERM."""
    keep: Positive = 2
    """Keep the last so many."""


@_frozen
class Config:
    """A whole run."""

    section: ClassVar[str] = ""

    recipe: str = "quickstart"
    """Name of the recipe that this configuration started from."""
    run_dir: str | None = None
    """Folder to write to. None: runs/<recipe>-seed<seed>-<time>."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    warm_start: WarmStartConfig = Field(default_factory=WarmStartConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    vllm: VLLMConfig = Field(default_factory=VLLMConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig)
    monitor: MonitorConfig = Field(default_factory=MonitorConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluation: EvalConfig = Field(default_factory=EvalConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)

    def __post_init__(self):
        if self.train.objective_overrides:
            try:
                self.objective()
            except ValueError as error:
                raise ValueError(f"train.objective_overrides: {error}") from None
        if self.model.path == "quickstart" and self.task.kind != "arithmetic":
            raise ValueError(
                "model.path: the embedded model 'quickstart' only knows task.kind='arithmetic', got "
                f"{self.task.kind!r}; name a model folder or hub id"
            )
        if self.train.minibatches > self.train.prompts_per_step:
            raise ValueError(
                f"train.minibatches: expected at most train.prompts_per_step ({self.train.prompts_per_step}), "
                f"got {self.train.minibatches}"
            )
        if self.vllm.one_step_off and self.sampling.engine == "hf":
            raise ValueError(
                "vllm.one_step_off: expected sampling.engine='vllm', which samples beside the trainer, got 'hf'"
            )

    def objective(self) -> Objective:
        """The loss of srt_kernels that train.objective and its overrides name. "dr_grpo" divides by sampling.max_new_tokens."""
        from srt_kernels.objective.objective import (
            Objective,  # brings torch, which `--help` should not wait for
        )

        changes = dict(self.train.objective_overrides)
        if self.train.objective == "dr_grpo":
            changes.setdefault("max_length", self.sampling.max_new_tokens)
        if self.vllm.one_step_off:
            changes.setdefault("correction", "token_truncate")
        return Objective.preset(self.train.objective, **changes)
