"""What tests of the samplers share: models, changes of weights, log-probs to compare with."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy
from srt_fast.quickstart import build_tokenizer
from srt_fast.sampling.base import Sampler, SamplingParams
from srt_fast.types import Rollouts

PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64], [1, 40, 41]]
END_TOKEN = 2


def save_model(model: PreTrainedModel, folder: Path, scale: float) -> str:
    """Multiply a model's weights by `scale` and save it with the quickstart's tokenizer.

    A scale above 1 moves its distributions away from the uniform one. Then a wrong temperature or a
    wrong layer is visible.
    """
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def perturb(policy: Policy, scale: float = 0.05) -> None:
    """Add noise to every weight: `scale` times the weight's standard deviation."""
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(scale * weight.std() * torch.randn_like(weight))


def policy_logprobs(policy: Policy, rollouts: Rollouts, temperature: float) -> Tensor:
    """[N] fp32: the trainer's log-probs of the rollouts' tokens."""
    all_rollouts = range(len(rollouts.truncated))
    return rollout_logprobs(
        policy, rollouts, all_rollouts, temperature=temperature, token_budget=4096
    )


def logprob_tolerance(policy: Policy, logprobs: Tensor) -> float:
    """How far two fp32 evaluations of the same log-probs may be apart, in nats.

    A sum of n rounded terms of size s is off by about sqrt(n) * 2^-24 * s. n counts the terms of
    the sums that lie one behind the other: in each layer q, k, v and their outputs, attention over
    the context, and both MLP products; then the head and the softmax. Two evaluations, 4 standard
    deviations: a factor of 8.
    """
    config = policy.model.config
    layer_terms = 3 * config.hidden_size + config.intermediate_size + config.max_position_embeddings
    terms = config.num_hidden_layers * layer_terms + config.hidden_size + config.vocab_size
    return 8 * math.sqrt(terms) * 2**-24 * max(1.0, logprobs.abs().max().item())


def assert_same_logprobs(policy: Policy, actual: Tensor, expected: Tensor) -> None:
    tolerance = logprob_tolerance(policy, expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def completions(rollouts: Rollouts) -> list[list[int]]:
    """The tokens of each rollout."""
    offsets = rollouts.cu_seqlens.tolist()
    pairs = zip(offsets[:-1], offsets[1:], strict=True)
    return [rollouts.tokens[start:end].tolist() for start, end in pairs]


def assert_samples_are_the_policys(
    sampler: Sampler, policy: Policy, prompts: list[list[int]]
) -> None:
    """Sync changed weights and sample, at two temperatures and greedily.

    - Log-probs are the trainer's.
    - The same seed gives the same samples. Samples of a prompt differ.
    - Sampling leaves torch's generator where a draw of the prompts' seeds leaves it.
    - A completion ends with the end token, or it is truncated and has the longest length.
    """
    for temperature in (1.0, 0.6):
        perturb(policy)
        sampler.sync(policy)
        params = SamplingParams(n=3, temperature=temperature, max_tokens=9)
        torch.manual_seed(5)
        rollouts = sampler.sample(prompts, params)
        random_state = torch.get_rng_state()
        torch.manual_seed(5)
        repeated = sampler.sample(prompts, params)
        assert repeated.tokens.equal(rollouts.tokens)
        assert repeated.logprobs.equal(rollouts.logprobs)
        assert repeated.cu_seqlens.equal(rollouts.cu_seqlens)
        torch.manual_seed(5)
        torch.randint(2**31, (len(prompts),))
        assert random_state.equal(torch.get_rng_state())

        assert rollouts.cu_groups.tolist() == list(range(0, 3 * len(prompts) + 1, 3))
        assert rollouts.prompts == prompts
        expected = policy_logprobs(policy, rollouts, temperature)
        assert_same_logprobs(policy, rollouts.logprobs, expected)
        for tokens, is_truncated in zip(
            completions(rollouts), rollouts.truncated.tolist(), strict=True
        ):
            assert (tokens[-1] == END_TOKEN) == (not is_truncated)
            assert len(tokens) == 9 or not is_truncated
        assert len({tuple(tokens) for tokens in completions(rollouts)}) > 6

    greedy = sampler.sample(prompts, SamplingParams(n=2, temperature=0.0, max_tokens=1))
    logits = policy.model(input_ids=torch.tensor([prompts[1]]), use_cache=False).logits[0, -1]
    assert greedy.tokens[2:4].tolist() == [logits.argmax()] * 2
    assert_same_logprobs(policy, greedy.logprobs, policy_logprobs(policy, greedy, 1.0))
