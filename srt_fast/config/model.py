"""Settings of the model, and of the embedded model's warm start."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from srt_fast.config.fields import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    section,
)


@section("model.lora.")
class LoRAConfig:
    """Low-rank adapters (LoRA) in place of training all weights. Needs the extra `lora` (peft)."""

    r: NonNegative = 0
    """Rank of the adapters. 0: no adapters, all weights are trained. Adapters want a learning rate
    about ten times that of all weights."""
    alpha: PositiveFloat = 32.0
    """An adapter adds alpha / r * B A to a weight."""
    dropout: NonNegativeFloat = 0.0
    """Must be 0. With dropout the log-probs of the training pass would not be those of the sampler,
    and on policy their ratio must be 1."""
    target: tuple[str, ...] = ("all-linear",)
    """The layers with adapters: "all-linear" (all linear layers but the LM head), or names such as
    q_proj v_proj. "lm_head" only if the head is not tied to the embeddings."""
    seed: NonNegative = 0
    """Seed of the adapters' first weights. B begins as 0, so every run starts from the same
    model."""
    quantize: Literal["none", "nf4"] = "none"
    """"nf4": keep the frozen weights of the body's linear layers in 4 bits (QLoRA), on a GPU or a
    CPU, in one process. Needs the extra `qlora` (bitsandbytes). A weight then takes 0.52 bytes in
    place of 4, or of 2 with model.dtype bfloat16. Passes take longer."""

    def __post_init__(self) -> None:
        if self.dropout:
            raise ValueError(
                "model.lora.dropout: expected 0 (with dropout the training pass would not have the "
                f"sampler's log-probs), got {self.dropout:g}"
            )
        is_all = "all-linear" in self.target
        if not self.target or (is_all and len(self.target) > 1):
            raise ValueError(
                "model.lora.target: expected 'all-linear' alone, or at least one name of a layer, "
                f"got {' '.join(self.target) or 'nothing'}"
            )


@section("model.")
class ModelConfig:
    """Which causal language model to train, and in which precision."""

    path: str = "quickstart"
    """"quickstart" (the embedded tiny model), a local Hugging Face folder, a .gguf file, or a hub
    id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in passes and of their gradients. bfloat16: the optimizer updates float32
    master weights and rounds them. Both types take 16 bytes a parameter for weights, gradients and
    optimizer. bfloat16 saves memory in a run with copies of the model, such as the reference of a
    KL, or without sharding. It adds up the gradients of micro-batches in bfloat16."""
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    """Type of the forward pass over float32 weights. "auto": bfloat16 on CUDA, off on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is trained. "auto": CUDA if torch finds a device, else the CPU."""
    kernels: Literal["auto", "torch", "liger"] = "auto"
    """Which kernels compute RMSNorm, RoPE and SwiGLU. "torch": PyTorch's. "liger": liger-kernel's,
    or an error that says why they cannot be used. "auto": liger-kernel's on CUDA if it is installed
    and supports the model, else PyTorch's."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile each block of the model, for training passes. The first step is slower by the
    time that this takes. Needs a C++ compiler. The embedded sampler runs the blocks uncompiled."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read that code before you turn this on."""
    lora: LoRAConfig = Field(default_factory=LoRAConfig)


@section("warm_start.")
class WarmStartConfig:
    """Supervised warm start of the embedded model. Used only if model.path is "quickstart"."""

    seed: NonNegative = 0
    """Seed of the embedded model's weights and data. It is separate from train.seed, so that runs
    with different seeds start from one model."""
    pass1_low: Fraction = 0.43
    """The warm start stops when held-out pass@1 at temperature 1 is between pass1_low and
    pass1_high. 4096 samples estimate it, with a standard error below one point (0.01)."""
    pass1_high: Fraction = 0.6
    """Upper end of that band."""
    hidden_size: Positive = 128
    """Width of the Llama model. It has 4 attention heads."""
    layers: Positive = 4
    """Number of layers."""
    batch_size: Positive = 128
    """Worked sums in one supervised step."""
    lr: PositiveFloat = 3e-3
    """Peak learning rate of AdamW, after a linear warm-up of 100 steps."""
    slip: Fraction = 0.15
    """Chance that a column of a worked sum gets a random digit. Web data has such mistakes too.
    With them a sample is often wrong where the majority is right, so the vote can help."""
    formats: tuple[Literal["verdict", "redo"], ...] = ()
    """What it teaches beside sums, for reward functions of several turns, with every second lesson.
    "verdict": 1 or 0 behind a solution and "?". "redo": a new solution behind a solution and "!",
    or behind a rejected one. Of these some are wrong too."""
    max_steps: Positive = 4000
    """The warm start fails with an error if it does not reach the band in so many steps."""

    def __post_init__(self) -> None:
        if self.pass1_low >= self.pass1_high:
            raise ValueError(
                "warm_start.pass1_low: expected less than pass1_high, "
                f"got {self.pass1_low} >= {self.pass1_high}"
            )
