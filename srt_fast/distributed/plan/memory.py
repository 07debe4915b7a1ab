"""Bytes of a rank, while it samples and while it trains.

Symbols. P: elements of the model's weights; B: of a block; R: of the root, which holds embedding,
final norm and head. H, I, V: widths of the residual stream, the MLP and the vocabulary. q, k:
elements of a token's queries and of its keys; h, h': heads of queries and of keys. S ranks share
one copy of the weights. A micro-batch has T tokens, train.token_budget, of which n are targets. A
stored weight has w bytes. An operand of a matrix product has c: 2 under autocast, else w.

State. Weights w P/S, gradients w P/S, Adam's two moments in float32 8 P/S, the float32 master
weights of bfloat16 weights 4 P/S, and w P/S for each copy of the model: the starting model (KL,
labels) and the moving average (teacher). FSDP2 splits rows and rounds up: P/S is the sum of
ceil(rows / S) x columns.

Activations. A block keeps for its backward pass, in bytes a token:
- of each of two RMSNorms 4 H (its input in float32), 4 (its scale), c H (its normalised input);
- c H for the input of q, k, v, and c H for the input of gate and up;
- c (2 q + 2 k) for queries, keys, values and attention's output, which is also the input of the
  output projection, and 4 h for the log-sum-exp;
- 4 c I for gate, its SiLU, up, and their product.
Qwen3 adds (4 + c) (q + k) + 4 (h + h') for the norms of queries and keys. The root keeps 8 for the
token's id, 2 c head_dim for cos and sin, and (4 + c) H + 4 for the final norm. With checkpointing a
block keeps c H, its input. In one process no sharding gathers the weights as bfloat16. Autocast
then keeps a residual stream in float32, five bfloat16 copies of the inputs of products, and a
bfloat16 copy of each matrix.

Loss. A chunk of C rows (LOGITS_CHUNK) has float32 logits, 4 C V, its hidden rows twice, 2 c C H,
and its dX, 4 C H. dX has c T H, because its rows are written once. The sum dW has float32, 4 V H.
In the end it is rounded to c bytes. Both are kept for the backward pass.

Training's peak is the state and the largest of three moments:
- loss: all activations, the loss, and the root's gathered weights, c R;
- a block's backward pass: all activations, and one block's if it recomputes them; gradients of
  activations, T (2 c I + 2 c H); dX and dW; c R; the block's gathered weights and the next one's,
  2 c B; its gradients, c B; and the float32 input of the reduce-scatter before, 4 B;
- the root's reduction: its gradients, c R, and their float32 copy, 4 R.
The optimizer needs less: AdamW is one kernel on CUDA, and casts one bfloat16 gradient at a time.
Without dist.reshard_after_forward all blocks stay gathered after the forward pass, c (P - R).

Sampling's peak is the state without gradients, and vLLM: weights c P / tp, work space, KV cache.
vLLM profiles its work space with VLLM_BATCHED_TOKENS tokens: c (3 I / tp + 4 H) bytes each, and
float32 logits and probabilities of each sequence, 8 V. vLLM sleeps while the model trains.

Measured in tests/distributed on a CPU: on two ranks the state and the backward pass's peak, in one
process the activations in all precisions, the loss, and a block's backward pass. The rest is
derived from the code of torch 2.13 and vLLM 0.32. Nothing of it has run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from srt_fast.distributed.plan.run import Precision, Run
from srt_fast.distributed.plan.shape import ModelShape

GIB = 1 << 30
LOGITS_CHUNK = 5 * GIB // 2
"""GPU_CHUNK_BYTES of srt_kernels.lm_head.lm_head, which needs torch. A test compares them."""
CHUNK_MULTIPLE = 128  # a chunk's rows are a multiple of it
RUNTIME_BYTES = 3 * GIB
"""Assumed: CUDA context, NCCL's buffers, CUDA graphs, fragmentation."""
VLLM_BATCHED_TOKENS = 16384  # vLLM's default; half of it on an A100


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a rank by part, at the peak of each phase."""

    sampling: Mapping[str, int]
    training: Mapping[str, int]
    moment: str
    """What the training pass does at its peak."""
    host: int
    """Bytes of host memory, with dist.cpu_offload."""
    capacity: int
    """The GPU's memory."""
    kv_tokens: int
    """Tokens that an engine's KV cache holds."""
    obstacle: str | None
    """Why the run does not fit. None: it fits."""

    @property
    def peak(self) -> int:
        return max(sum(self.sampling.values()), sum(self.training.values()))


def memory(run: Run) -> Memory:
    """The memory of rank 0, which has the largest shards."""
    state = state_bytes(run)
    resident = {name: size for name, size in state.items() if name != "gradients"}
    host = 0
    if run.config.dist.cpu_offload:
        host = sum(state.values())
        state = resident = {}
    runtime = {"runtime": RUNTIME_BYTES}
    engine = vllm_bytes(run)
    moment, parts = max(training_moments(run).items(), key=lambda item: sum(item[1].values()))
    training = state | parts | runtime
    if not run.config.vllm.sleep:
        training = training | engine
    sampling = resident | engine | runtime
    capacity = int(run.cluster.device.memory)
    kv_tokens = run.tensor_parallel * engine["KV cache"] // kv_bytes(run)
    obstacle = None
    if sum(training.values()) > capacity:
        obstacle = f"training needs {_excess(training, capacity)} more than the GPU has"
    elif kv_tokens < run.longest_sequence:
        obstacle = f"the KV cache is too small for a sequence of {run.longest_sequence:,} tokens"
    elif sum(sampling.values()) > capacity:
        obstacle = f"sampling needs {_excess(sampling, capacity)} more than the GPU has"
    return Memory(
        sampling=sampling,
        training=training,
        moment=moment,
        host=host,
        capacity=capacity,
        kv_tokens=max(0, kv_tokens),
        obstacle=obstacle,
    )


def state_bytes(run: Run) -> dict[str, int]:
    """What lives through all steps, and the gradients."""
    elements = run.shape.shard_size(run.shard_ranks)
    shard = run.precision.weight * elements
    state = {"weights": shard, "gradients": shard, "Adam": 8 * elements}
    if run.precision.weight < 4:
        state["master weights"] = 4 * elements
    return state | dict.fromkeys(run.copies, shard)


def vllm_bytes(run: Run) -> dict[str, int]:
    """vLLM's part of a rank's memory. The KV cache has what the others leave, maybe less than 0."""
    shape, size, vllm = run.shape, run.precision.compute, run.config.vllm
    weights = size * shape.size // run.tensor_parallel
    token = size * (3 * shape.intermediate // run.tensor_parallel + 4 * shape.hidden)
    logits = 8 * shape.vocabulary * run.config.sampling.max_sequences
    work_space = VLLM_BATCHED_TOKENS * token + logits
    if vllm.kv_cache_gib is not None:
        cache = int(vllm.kv_cache_gib * GIB)
    else:
        total = int(vllm.gpu_memory_utilization * run.cluster.device.memory)
        cache = max(0, total - weights - work_space)
    return {"vLLM weights": weights, "vLLM work space": work_space, "KV cache": cache}


def kv_bytes(run: Run) -> int:
    """Bytes of a token's keys and values, on all GPUs of an engine.

    An engine with more GPUs than the model has heads of keys holds copies of them.
    """
    shape = run.shape
    copies = max(1, run.tensor_parallel // shape.kv_heads)
    return copies * 2 * shape.layers * shape.key * run.precision.compute


def training_moments(run: Run) -> dict[str, dict[str, int]]:
    """Bytes beside the state, by moment and part."""
    shape, precision, tokens = run.shape, run.precision, run.micro_batch_tokens
    checkpointing = run.config.model.gradient_checkpointing
    units = {"embedding and head": 0, "blocks": 0}
    gathered = 0  # blocks that wait for their backward pass
    if run.is_sharded:
        units = unit_bytes(shape, precision)
        if not run.config.dist.reshard_after_forward:
            gathered = (shape.layers - 1) * precision.compute * shape.block_size
    keys = int(tokens * run.keys_per_token)
    kept = activations(shape, precision, tokens, keys, checkpointing=checkpointing)
    recomputed = block_activations(shape, precision, tokens, keys) if checkpointing else 0
    targets = int(tokens * run.completion_tokens / run.tokens_per_rollout)
    loss = {
        "activations": kept,
        "logits and head gradient": loss_bytes(shape, precision, tokens, targets),
        "embedding and head": units["embedding and head"],
        "blocks": gathered,
    }
    backward = {
        "activations": kept + recomputed + backward_temporaries(shape, precision, tokens),
        "logits and head gradient": head_gradients(shape, precision, tokens),
        "embedding and head": units["embedding and head"],
        "blocks": units["blocks"] + gathered,
    }
    moments = {"loss": loss, "backward pass of a block": backward}
    if run.is_sharded:
        root = (precision.compute + 4) * shape.root_size
        moments["reduction of the root"] = {"embedding and head": root}
    return moments


def unit_bytes(shape: ModelShape, precision: Precision) -> dict[str, int]:
    """What FSDP2 holds in a block's backward pass: gathered weights, and gradients of blocks."""
    return {
        "embedding and head": precision.compute * shape.root_size,
        "blocks": (3 * precision.compute + 4) * shape.block_size,
    }


def block_activations(shape: ModelShape, precision: Precision, tokens: int, keys: int) -> int:
    """Bytes that one block keeps for its backward pass. keys: that its attention gathers."""
    query, key, size = shape.query, shape.key, precision.compute
    inputs = (5 if precision.casts_weights else 2) * size * shape.hidden
    attention = 2 * size * query + 4 * shape.heads
    if shape.qk_norm:
        attention += (4 + size) * (query + key) + 4 * (shape.heads + shape.kv_heads)
    mlp = 4 * size * shape.intermediate
    casts = size * shape.block_matrix_size if precision.casts_weights else 0
    gathered = keys * 2 * size * key
    return (
        tokens * (2 * _norm_bytes(shape, precision) + inputs + attention + mlp) + gathered + casts
    )


def activations(
    shape: ModelShape, precision: Precision, tokens: int, keys: int, *, checkpointing: bool
) -> int:
    """Bytes that blocks and root keep for the backward pass, without the loss."""
    if checkpointing:
        blocks = shape.layers * tokens * precision.residual * shape.hidden
    else:
        blocks = shape.layers * block_activations(shape, precision, tokens, keys)
    positions = 8 + 2 * precision.residual * shape.head_dim
    return blocks + tokens * (positions + _norm_bytes(shape, precision))


def head_gradients(shape: ModelShape, precision: Precision, tokens: int) -> int:
    """Bytes of dX and dW, which the loss keeps for the backward pass."""
    dhidden = precision.compute * tokens * shape.hidden
    return dhidden + precision.whole_weight * shape.vocabulary * shape.hidden


def loss_bytes(shape: ModelShape, precision: Precision, tokens: int, targets: int) -> int:
    """The largest number of bytes that the loss holds, with its results."""
    hidden, size = shape.hidden, precision.compute
    rows = chunk_rows(shape, targets)
    chunk = rows * (4 * shape.vocabulary + (2 * size + 4) * hidden)
    if precision.casts_weights:
        chunk += size * shape.vocabulary * hidden  # the head's weight as an operand
    dweight = precision.whole_weight * shape.vocabulary * hidden
    rounded = dweight if precision.whole_weight == 2 else 0
    return (size * tokens + 4 * shape.vocabulary) * hidden + max(chunk, rounded)


def chunk_rows(shape: ModelShape, targets: int) -> int:
    """Rows of a chunk of logits, at most. The kernels take fewer where that fits the chip."""
    rows = LOGITS_CHUNK // (4 * shape.vocabulary) // CHUNK_MULTIPLE * CHUNK_MULTIPLE
    return min(targets, max(CHUNK_MULTIPLE, rows))


def backward_temporaries(shape: ModelShape, precision: Precision, tokens: int) -> int:
    """Bytes of gradients of activations in a block, beyond the activations that it has freed.

    The peak is in the MLP. The gradients of product, up and SiLU are there, and product is freed;
    so are the gradients of the block's output and of its residual stream.
    """
    size = precision.compute * shape.intermediate + precision.residual * shape.hidden
    return 2 * tokens * size


def _norm_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes a token that an RMSNorm keeps: input and scale in float32, normalised input."""
    return 4 * shape.hidden + 4 + precision.residual * shape.hidden


def _excess(parts: Mapping[str, int], capacity: int) -> str:
    return f"{(sum(parts.values()) - capacity) / GIB:.1f} GiB"
