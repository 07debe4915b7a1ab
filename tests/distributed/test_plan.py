"""`srt-fast plan`: shapes, errors, seconds worked out by hand, advice and output."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from srt_fast import cli
from srt_fast.config import REWARD_KINDS, override
from srt_fast.config.recipes import paper_math
from srt_fast.distributed.plan.advice import apply, first_fit
from srt_fast.distributed.plan.devices import DEVICES, Device
from srt_fast.distributed.plan.memory import memory
from srt_fast.distributed.plan.run import KINDS_WITH_START_LABELS, Cluster, Run
from srt_fast.distributed.plan.seconds import Seconds, seconds
from srt_fast.distributed.plan.shape import MODEL_TYPES, PRESETS, ModelShape, find_shape
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.base import StartLabels, find_requirement
from support.models import SMALL
from support.rollouts import required_params

ROUND = Device(
    name="round figures",
    memory=80e9,
    flops=1e12,
    memory_bandwidth=1e9,
    link_bandwidth=1e9,
    network_bandwidth=1e8,
    host_bandwidth=5e7,
    source="",
)
TINY = ModelShape(
    name="tiny",
    hidden=10,
    intermediate=20,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=5,
    vocabulary=100,
    is_tied=True,
)


def make_run(
    model: str | ModelShape = "Qwen2.5-7B",
    gpus: int = 8,
    device: Device = DEVICES["H100-80GB"],
    **changes: Any,
) -> Run:
    config = override(paper_math(), {name.replace("__", "."): v for name, v in changes.items()})
    return Run(
        shape=model if isinstance(model, ModelShape) else find_shape(model),
        cluster=Cluster(device=device, gpus=gpus),
        config=config,
        prompt_tokens=config.sampling.max_prompt_tokens,
        completion_tokens=config.sampling.max_new_tokens,
    )


def seconds_of(gpus: int, **changes: Any) -> Seconds:
    run = make_run(TINY, gpus, ROUND, **changes)
    return seconds(run, memory(run))


# ---- shapes ----


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        LlamaConfig(**SMALL, head_dim=16),
        MistralConfig(**SMALL),
        Qwen2Config(**SMALL),
        Qwen3Config(**SMALL, tie_word_embeddings=True),
        Qwen3Config(**SMALL, attention_bias=True),
    ],
)
def test_shapes_have_the_weights_of_transformers_models(config, tmp_path):
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = find_shape(str(tmp_path))
    assert shape.size == model.num_parameters()
    assert shape.shard_size(3) == sum(
        -(-len(weight) // 3) * (weight.numel() // len(weight)) for weight in model.parameters()
    )
    assert config.model_type in MODEL_TYPES


def test_presets_have_the_published_number_of_weights():
    """As the Hugging Face hub shows them."""
    assert {name: shape.size for name, shape in PRESETS.items()} == {
        "Qwen2.5-1.5B": 1543714304,
        "Qwen2.5-7B": 7615616512,
        "Qwen2.5-32B": 32763876352,
        "Llama-3-70B": 70553706496,
    }


# ---- what the formulas read of a run ----


def test_models_beside_the_policy():
    def copies(**changes: Any) -> tuple[str, ...]:
        return make_run(**({"train__reward_kl_coef": 0.0} | changes)).copies

    assert copies() == ()
    assert copies(train__reward_kl_coef=1e-3) == ("starting model",)
    assert copies(train__objective_overrides={"kl": "k3", "kl_coef": 0.1}) == ("starting model",)
    assert copies(monitor__action="freeze") == ("starting model",)
    assert copies(reward__kind="frozen", reward__params={"file": "labels.jsonl"}) == ()
    assert copies(reward__kind="pool", train__reward_kl_coef=1) == ("starting model", "teacher")


def test_kinds_with_labels_of_the_starting_model():
    kinds = set()
    for kind in REWARD_KINDS:
        function = make_reward_function(kind, required_params(kind))
        if find_requirement(function, StartLabels):
            kinds.add(kind)
    assert kinds == set(KINDS_WITH_START_LABELS)


# ---- seconds, by hand ----

HAND = dict(
    train__reward_kl_coef=0.0,
    train__shared_prompt=False,
    train__prompts_per_step=6,
    sampling__group_size=2,
    sampling__max_prompt_tokens=10,
    sampling__max_new_tokens=20,
    train__token_budget=60,
    model__gradient_checkpointing=False,
    vllm__kv_cache_gib=1.0,
)
MATRIX = 10 * 20 + 2 * 10 * 10 + 20 * 10 + 3 * 10 * 20  # q, k and v, o, MLP
BLOCK = MATRIX + 20
SIZE = 2 * BLOCK + 10 + 1000


def test_sampling_by_hand():
    """2 engines of 2 GPUs, 3 prompts x 2 rollouts each. A step reads the weights in bf16, and the
    cache of 6 sequences of 10 + 10 tokens: keys and values of 10 elements in 2 layers."""
    phases = seconds_of(4, **HAND, vllm__engine_args={"tensor_parallel_size": 2})
    bytes_of_step = (2 * SIZE + 6 * 20 * 2 * 2 * 10 * 2) / 2
    assert phases.sampling.seconds == pytest.approx(20 * bytes_of_step / 0.7e9)
    assert phases.sampling.bound == "memory bandwidth"
    alone = seconds_of(4, **HAND)
    with_teacher = seconds_of(4, **HAND, reward__kind="ema")
    assert with_teacher.sampling.seconds == 2 * alone.sampling.seconds
    assert with_teacher.weight_sync.seconds == 3 * alone.weight_sync.seconds


def test_sequences_without_room_wait():
    """The cache holds 2 of 12 sequences at a time: six times the steps."""
    run = make_run(TINY, 1, ROUND, **HAND)
    small = seconds(run, replace(memory(run), kv_tokens=2 * 20))
    bytes_of_step = 2 * SIZE + 2 * 20 * 2 * 2 * 10 * 2
    assert small.sampling.seconds == pytest.approx(6 * 20 * bytes_of_step / 0.7e9)


def test_groups_are_not_split():
    phases = seconds_of(16, **HAND)
    assert (phases.engines, phases.busy_engines) == (16, 6)


def test_training_by_hand():
    """12 rollouts of 10 + 20 tokens on 2 GPUs: 180 tokens each, 3 micro-batches of 60."""
    phases = seconds_of(2, **HAND)
    matrices = 6 * 2 * MATRIX * 360
    attention = 3.5 * 2 * 2 * 20 * 30 * 360  # layers x q x length
    head = 6 * 1000 * 12 * 20
    assert phases.training.seconds == pytest.approx((matrices + attention + head) / 2 / 0.4e12)
    # bf16 weights forward, those of blocks backward, float32 gradients; half of it from the other
    moved = (2 * SIZE + 2 * 2 * BLOCK + 4 * SIZE) / 2
    assert phases.communication.seconds == pytest.approx(3 * moved / 0.7e9)
    assert phases.step == pytest.approx(
        phases.sampling.seconds
        + max(phases.training.seconds, phases.communication.seconds)
        + phases.weight_sync.seconds
    )


def test_shared_prompts_by_hand():
    """Six prompts once and 240 tokens of completions: 150 of 300 on each GPU."""
    phases = seconds_of(2, **(HAND | dict(train__shared_prompt=True)))
    matrices = 6 * 2 * MATRIX * 300
    keys = 6 * 10 * 5 + 240 * (10 + 10)  # of prompts, and of completions
    attention = 3.5 * 2 * 4 * 20 * keys  # layers x 4 q
    head = 6 * 1000 * 12 * 20
    assert phases.training.seconds == pytest.approx((matrices + attention + head) / 2 / 0.4e12)
    assert phases.micro_batches == 3
    run = make_run(TINY, 2, ROUND, **(HAND | dict(train__shared_prompt=True)))
    assert run.keys_per_token == (300 + 12 * 10) / 300


def test_passes_without_gradient():
    """A KL in the reward scores all rollouts with two models."""
    alone = seconds_of(2, **HAND)
    with_kl = seconds_of(2, **(HAND | dict(train__reward_kl_coef=1.0)))
    scored = 2 * (360 * (2 * 2 * MATRIX + 2 * 2 * 20 * 30) + 240 * 2 * 1000)
    more = with_kl.training.seconds - alone.training.seconds
    assert more == pytest.approx(scored / 2 / 0.4e12)
    moved = with_kl.communication.seconds - alone.communication.seconds
    assert moved == pytest.approx(3 * 2 * 2 * SIZE / 2 / 0.7e9)


def test_links_by_hand():
    """Between nodes 8 adapters of 1e8 carry a ring. Replicas add a ring over one adapter."""
    settings = HAND | dict(train__prompts_per_step=96)
    moved = 2 * SIZE + 2 * 2 * BLOCK + 4 * SIZE
    flat = seconds_of(16, **settings)
    assert flat.micro_batches == 6
    assert flat.communication.seconds == pytest.approx(6 * moved * 15 / 16 / 0.56e9)
    hybrid = seconds_of(16, **settings, dist__replicas=2)
    between = 4 * SIZE / 8 * 2 * 1 / 2 / 0.07e9
    assert hybrid.communication.seconds == pytest.approx(6 * (moved * 7 / 8 / 0.7e9 + between))
    offload = seconds_of(16, **settings, dist__cpu_offload=True)
    assert offload.communication.bound == "host link"
    assert offload.communication.seconds == pytest.approx(6 * 3 * 4 * SIZE / 16 / 0.035e9)


# ---- memory and advice ----


def test_settings_change_the_memory_that_they_say():
    base = memory(make_run(gpus=8))
    assert base.obstacle is None
    offloaded = memory(make_run(gpus=8, dist__cpu_offload=True))
    assert "weights" not in offloaded.training
    assert offloaded.host == sum(
        base.training[name] for name in ("weights", "gradients", "Adam", "starting model")
    )
    narrow = memory(make_run(gpus=8, model__dtype="bfloat16")).training
    assert narrow["starting model"] == base.training["starting model"] / 2
    state = narrow["weights"] + narrow["gradients"] + narrow["Adam"] + narrow["master weights"]
    assert state == sum(base.training[name] for name in ("weights", "gradients", "Adam"))
    awake = memory(make_run(gpus=8, vllm__sleep=False))
    assert sum(awake.training.values()) - sum(base.training.values()) == sum(
        base.sampling[name] for name in ("vLLM weights", "vLLM work space", "KV cache")
    )
    replicated = memory(make_run(gpus=16, dist__replicas=2))
    assert replicated.training["weights"] == base.training["weights"]
    gathered = memory(make_run(gpus=8, dist__reshard_after_forward=False))
    assert gathered.training["blocks"] - base.training["blocks"] == 27 * 2 * 233057792
    cache = memory(make_run(gpus=8, vllm__kv_cache_gib=2.0)).sampling["KV cache"]
    assert cache == 2 << 30


@pytest.mark.parametrize(
    "run",
    [
        make_run("Llama-3-70B", 64),
        make_run("Qwen2.5-32B", 8),
        make_run("Qwen2.5-7B", 8, model__gradient_checkpointing=False),
        make_run("Qwen2.5-1.5B", 1, train__token_budget=1 << 17),
        make_run("Llama-3-70B", 8, device=DEVICES["B200-180GB"]),
    ],
)
def test_advice_makes_a_run_fit_and_each_change_is_needed(run):
    assert memory(run).obstacle is not None
    changes = first_fit(run)
    assert changes
    assert memory(apply(run, changes)).obstacle is None
    for count in range(len(changes)):
        for fewer in itertools.combinations(changes.items(), count):
            try:
                assert memory(apply(run, dict(fewer))).obstacle is not None
            except ValueError:  # not a run without the other change
                continue


def test_advice_has_nothing_for_a_run_that_fits():
    assert first_fit(make_run(gpus=8)) == {}


# ---- the command ----


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "Qwen9"], "--model: expected one of Qwen2.5-1.5B"),
        (["--gpus", "0"], "--gpus: expected at least 1, got 0"),
        (["--gpus", "12"], "--gpus: expected a multiple of --gpus-per-node, 8, got 12"),
        (["--device", "V100"], "--device: expected one of A100-80GB"),
        (["--active", "0"], "--active: expected more than 0"),
        (["--prompt-tokens", "-1"], "--prompt-tokens: expected at least 1"),
        (["--dist.shard", "3"], "dist.shard: expected shard x replicas to be the number of GPUs"),
        (["--vllm.engine-args", "tensor_parallel_size=3"], "expected a divisor"),
        (["--vllm.engine-args", "tensor_parallel_size=x"], "expected an integer, got 'x'"),
        (["--vllm.mode", "server", "--vllm.urls", "http://host:8000"], "vllm.mode: expected 'col"),
    ],
)
def test_bad_arguments_are_one_line(argv, message, capsys):
    assert cli.main(["plan", "--model", "Qwen2.5-7B", "--gpus", "8", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error:") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a folder with config.json"),
        ("{", "expected valid JSON"),
        ("[]", "expected an object, got list"),
        ('{"model_type": "gpt2"}', "model_type: expected one of llama, mistral, qwen2, qwen3"),
        ('{"model_type": "llama"}', "num_attention_heads: expected a positive integer, got None"),
    ],
)
def test_bad_folders_name_the_file(text, message, tmp_path: Path, capsys):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert cli.main(["plan", "--model", str(tmp_path), "--gpus", "8"]) == 2
    error = capsys.readouterr().err
    assert message in error and str(tmp_path) in error


def test_the_table_and_the_json_say_the_same(capsys):
    argv = ["plan", "paper_math", "--model", "Llama-3-70B", "--gpus", "64"]
    assert cli.main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert cli.main([*argv, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not plan["fits"]
    training = plan["memory"]["training"]
    assert f"activations {training['activations'] / 2**30:.1f}" in text
    assert f"sum {sum(plan['memory']['sampling'].values()) / 2**30:.1f}" in text
    assert f"step {plan['seconds']['step']:,.1f}" in text
    assert "largest part vLLM weights activations" in text
    assert "It does not fit: " + plan["obstacle"] in text
    assert "It fits with --" in text
    assert "A calculation, not a measurement" in text
