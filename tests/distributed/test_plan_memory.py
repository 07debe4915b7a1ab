"""The formulas of a rank's memory against the bytes of tensors that are alive, in one process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, Qwen2Config, Qwen3Config

from srt_fast.config import override
from srt_fast.config.recipes import paper_math
from srt_fast.distributed.plan import memory, seconds
from srt_fast.distributed.plan.devices import DEVICES
from srt_fast.distributed.plan.run import Cluster, Precision, Run
from srt_fast.distributed.plan.shape import ModelShape, find_shape
from srt_fast.model.logprobs import head_inputs
from srt_fast.model.policy import Policy
from srt_fast.packing.micro_batches import pack
from srt_fast.types import Layout, MicroBatch, Rollouts
from srt_kernels import Objective, linear_policy_loss
from srt_kernels.lm_head import lm_head, logits_torch
from support.memory import MemoryMeter
from support.models import SMALL, make_policy

ROLLOUTS, PROMPT, COMPLETION = 6, 20, 80
TOKENS = PROMPT + ROLLOUTS * COMPLETION  # a group and its prompt
KEYS = PROMPT + ROLLOUTS * (PROMPT + COMPLETION)
SCALARS = 64  # bytes of tensors with one element
WIDE = SMALL | dict(
    vocab_size=2048,
    hidden_size=128,
    head_dim=32,
    intermediate_size=448,
    num_hidden_layers=4,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)
PRECISIONS = {
    "float32": Precision(weight=4, compute=4, residual=4),
    "sharded, autocast": Precision(weight=4, compute=2, residual=2),
    "one process, autocast": Precision(weight=4, compute=2, residual=4, casts_weights=True),
}


def policy_of(config: PreTrainedConfig, precision: str, checkpointing: bool) -> Policy:
    autocast = "off" if precision == "float32" else "bfloat16"
    policy = make_policy(config, autocast=autocast, gradient_checkpointing=checkpointing)
    if precision == "sharded, autocast":  # FSDP2 gathers weights as bfloat16
        policy.model.to(torch.bfloat16)
    return policy


def shape_of(config: PreTrainedConfig, folder) -> ModelShape:
    config.save_pretrained(folder)
    return find_shape(str(folder))


def micro_batch() -> MicroBatch:
    torch.manual_seed(0)
    length = COMPLETION + 1  # the last token predicts nothing
    count = ROLLOUTS * length
    rollouts = Rollouts(
        tokens=torch.randint(3, 200, (count,)),
        cu_seqlens=torch.arange(0, count + 1, length, dtype=torch.int32),
        cu_groups=torch.tensor([0, ROLLOUTS], dtype=torch.int32),
        logprobs=torch.zeros(count),
        truncated=torch.zeros(ROLLOUTS, dtype=torch.bool),
        prompts=[list(range(3, 3 + PROMPT))],
        layout=Layout(lengths=[length] * ROLLOUTS, group_sizes=[ROLLOUTS]),
    )
    advantages = torch.linspace(-1, 1, ROLLOUTS)
    [batch] = pack(rollouts, advantages, range(ROLLOUTS), TOKENS, share_prompts=True)
    return batch


def fused_loss(policy: Policy, batch: MicroBatch) -> tuple[Callable[[], Tensor], Tensor]:
    """A function that computes the loss once, and the hidden states that it takes."""
    tensors, options = head_inputs(policy, batch, temperature=1.0)
    objective = Objective.preset("reinforce")

    def loss() -> Tensor:
        result = linear_policy_loss(
            *tensors, batch.advantages, batch.cu_seqlens, objective, normalizer=1.0, **options
        )
        return result.loss

    return loss, tensors[0]


def cpu_attention_bytes(shape: ModelShape, precision: Precision) -> int:
    """What a block's attention keeps on a CPU only, where it gathers and scatters sequences.

    A copy of the output, and the mask of a completion's queries and keys.
    """
    mask = COMPLETION * (PROMPT + COMPLETION)
    return precision.compute * (TOKENS * shape.query + mask)


# What all blocks share: indices of queries, keys and outputs, and the mask as bytes.
PLAN_BYTES = 8 * (2 * TOKENS + KEYS) + COMPLETION * (PROMPT + COMPLETION)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config_type", [Qwen2Config, Qwen3Config])
def test_activations_are_those_of_the_formula(config_type, precision, checkpointing, tmp_path):
    """Equal to the byte, but for token ids (older than the meter) and tensors of one element."""
    config = config_type(**WIDE)
    policy = policy_of(config, precision, checkpointing)
    shape, sizes = shape_of(config, tmp_path), PRECISIONS[precision]
    batch = micro_batch()
    expected = memory.activations(shape, sizes, TOKENS, KEYS, checkpointing=checkpointing)
    expected += PLAN_BYTES - 8 * TOKENS
    if not checkpointing:
        expected += shape.layers * cpu_attention_bytes(shape, sizes)
    with MemoryMeter() as meter:
        loss, hidden = fused_loss(policy, batch)
        assert abs(meter.live - hidden.nbytes - expected) <= SCALARS
        kept = loss()
        del loss, hidden
        expected += memory.head_gradients(shape, sizes, TOKENS)
        assert abs(meter.live - expected) <= SCALARS
        meter.reset_peak()
        kept.backward()
    # The peak is in the MLP of the last block. The root's part of the activations and dX are freed,
    # and some of the block's gradients are there.
    if checkpointing:
        expected += memory.block_activations(shape, sizes, TOKENS, KEYS)
        expected += cpu_attention_bytes(shape, sizes)
    expected += memory.backward_temporaries(shape, sizes, TOKENS)
    root = memory.activations(shape, sizes, TOKENS, KEYS, checkpointing=True)
    root -= shape.layers * TOKENS * sizes.residual * shape.hidden
    freed = root + sizes.compute * TOKENS * shape.hidden
    gradients = (sizes.whole_weight + sizes.compute) * shape.block_size
    assert expected - freed <= meter.peak <= expected + gradients


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_holds_what_the_formula_says(precision, tmp_path):
    """The CPU's path has two slabs of logits beside it. The peak is before a chunk's dX is there,
    so the chunk's rows may be missing."""
    config = Qwen2Config(**(WIDE | dict(vocab_size=32768)))
    policy = policy_of(config, precision, checkpointing=True)
    shape, sizes = shape_of(config, tmp_path), PRECISIONS[precision]
    batch = micro_batch()
    loss, _ = fused_loss(policy, batch)
    targets = len(batch.targets)
    with MemoryMeter() as meter:
        loss()
    expected = memory.loss_bytes(shape, sizes, TOKENS, targets) + 2 * logits_torch.SLAB_BYTES
    rows = targets * shape.hidden * (2 * sizes.compute + 4)
    assert memory.chunk_rows(shape, targets) == targets  # one chunk, also on the CPU
    assert abs(meter.peak - expected) <= rows


def test_chunks_have_the_size_of_the_kernels():
    for vocabulary in (32000, 151936, 1 << 24):
        shape = ModelShape(
            name="",
            hidden=1,
            intermediate=1,
            layers=1,
            heads=1,
            kv_heads=1,
            head_dim=1,
            vocabulary=vocabulary,
            is_tied=True,
        )
        most = memory.chunk_rows(shape, targets=1 << 30)
        assert lm_head.gpu_chunk_rows(4 * vocabulary, 4096, multiprocessors=1) == most
        assert lm_head.gpu_chunk_rows(4 * vocabulary, 4096, multiprocessors=132) <= most


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_of_the_blocks_matrices(checkpointing, tmp_path):
    """torch counts the matrix products of a forward and a backward pass, without attention."""
    config = Qwen2Config(**WIDE)
    policy = policy_of(config, "float32", checkpointing)
    batch = micro_batch()
    with FlopCounterMode(display=False) as counter:
        policy.hidden(batch.input_ids, batch.position_ids, batch.segments).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(count for op, count in counts.items() if "mm" in str(op))
    changes = {
        "train.reward_kl_coef": 0.0,
        "train.prompts_per_step": 1,
        "sampling.group_size": ROLLOUTS,
        "model.gradient_checkpointing": checkpointing,
    }
    run = Run(
        shape=shape_of(config, tmp_path),
        cluster=Cluster(device=DEVICES["H100-80GB"], gpus=1),
        config=override(paper_math(), changes),
        prompt_tokens=PROMPT,
        completion_tokens=COMPLETION,
    )
    head = 3 * 2 * ROLLOUTS * COMPLETION * run.shape.vocabulary * run.shape.hidden
    attention = (4.5 if checkpointing else 3.5) * seconds._attention_flops(run)
    assert counted == seconds.training_flops(run) - head - attention
