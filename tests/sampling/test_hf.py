"""The embedded sampler against the model's own logits, one sequence at a time."""

import torch
from torch.nn.functional import log_softmax

from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.hf import HFSampler, _draw
from support.sampling import END_TOKEN, PROMPTS, assert_same_logprobs, completions


def expected_logprobs(policy, prompts, rollouts, samples, temperature=1.0):
    """[N]: log-probs by one forward pass of each rollout alone."""
    logprobs = []
    for index, tokens in enumerate(completions(rollouts)):
        prompt = prompts[index // samples]
        input_ids = torch.tensor([prompt + tokens])
        logits = policy.model(input_ids=input_ids, use_cache=False).logits[0]
        rows = log_softmax(logits.float() / temperature, -1)[len(prompt) - 1 : -1]
        logprobs.append(rows.gather(1, torch.tensor(tokens)[:, None])[:, 0])
    return torch.cat(logprobs)


@torch.no_grad()
def test_logprobs_are_the_models_at_every_temperature(tiny_policy):
    """Padding, batching, temperature and the model's generation settings change nothing."""
    generation_config = tiny_policy.model.generation_config
    generation_config.repetition_penalty = 3.0
    generation_config.min_p = 0.9
    generation_config.no_repeat_ngram_size = 2
    sampler = HFSampler(tiny_policy, max_sequences=5)
    for temperature in (1.0, 0.7):
        torch.manual_seed(1)
        params = SamplingParams(n=3, temperature=temperature, max_tokens=6)
        rollouts = sampler.sample(PROMPTS, params)
        assert rollouts.cu_groups.tolist() == [0, 3, 6, 9, 12]
        expected = expected_logprobs(tiny_policy, PROMPTS, rollouts, 3, temperature)
        assert_same_logprobs(tiny_policy, rollouts.logprobs, expected)
        assert rollouts.logprobs.min() < -5  # with min_p 0.9 all tokens would be likely


@torch.no_grad()
def test_ends_at_the_first_end_token_and_counts_truncated_completions(tiny_policy):
    """When a sequence ends, the others continue as if they had been alone."""
    end_row = tiny_policy.model.lm_head.weight[END_TOKEN]
    end_row += tiny_policy.model.lm_head.weight.std() * 20 * torch.randn(32).sign()  # likely
    torch.manual_seed(0)
    rollouts = HFSampler(tiny_policy, max_sequences=512).sample(
        PROMPTS, SamplingParams(n=16, temperature=1.0, max_tokens=4)
    )
    truncated = rollouts.truncated.tolist()
    for tokens, is_truncated in zip(completions(rollouts), truncated, strict=True):
        assert END_TOKEN not in tokens[:-1]
        assert (tokens[-1] == END_TOKEN) == (not is_truncated)
        assert len(tokens) == 4 or not is_truncated
    assert 0 < sum(truncated) < 64  # both cases occur
    expected = expected_logprobs(tiny_policy, PROMPTS, rollouts, 16)
    assert_same_logprobs(tiny_policy, rollouts.logprobs, expected)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Frequencies lie within 5 standard errors. A token of probability 0 is never drawn.

    Such tokens are the first, the last and one in the middle.
    """
    probabilities = torch.tensor([0, 0.5, 1e-3, 0, 0.25, 0.249, 0])
    torch.manual_seed(0)
    count = 200_000
    uniform = torch.rand(count, dtype=torch.float64)
    tokens = _draw(probabilities.log().expand(count, -1), uniform)
    frequencies = tokens.bincount(minlength=7) / count
    standard_errors = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((frequencies - probabilities).abs() <= 5 * standard_errors).all()


def test_greedy_and_seeded(tiny_policy):
    sampler = HFSampler(tiny_policy, max_sequences=512)
    greedy = SamplingParams(n=1, temperature=0.0, max_tokens=4)
    rollouts = sampler.sample(PROMPTS, greedy)
    assert rollouts.tokens.equal(sampler.sample(PROMPTS, greedy).tokens)
    logits = tiny_policy.model(input_ids=torch.tensor([PROMPTS[1]]), use_cache=False).logits[0, -1]
    assert rollouts.tokens[rollouts.cu_seqlens[1]] == logits.argmax()

    params = SamplingParams(n=4, temperature=1.0, max_tokens=4)
    torch.manual_seed(3)
    rollouts = sampler.sample(PROMPTS, params)
    torch.manual_seed(3)
    assert rollouts.tokens.equal(sampler.sample(PROMPTS, params).tokens)


def test_a_prompts_seed_decides_its_completions(tiny_policy):
    """Whatever else is in the batch, and however large batches are.

    A batch computes a prompt once. In batches of one it is computed for each completion.
    """
    params = SamplingParams(n=4, temperature=1.0, max_tokens=6)
    seeds = [11, 12, 13, 14]
    embedded = []
    embedding = tiny_policy.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, ids, __: embedded.append(ids[0].shape))
    together = HFSampler(tiny_policy, max_sequences=512).sample(PROMPTS, params, seeds=seeds)
    hook.remove()
    assert embedded[0] == (len(PROMPTS), max(map(len, PROMPTS)))
    expected = completions(together)
    assert len({tuple(completion) for completion in expected[:4]}) > 1
    sampler = HFSampler(tiny_policy, max_sequences=1)
    for index, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        alone = sampler.sample([prompt], params, seeds=[seed])
        assert completions(alone) == expected[4 * index : 4 * index + 4]


@torch.no_grad()
def test_truncated_logprobs_are_those_of_the_remaining_tokens(tiny_policy):
    """With top_k 3 after the temperature, three tokens share the probability."""
    sampler = HFSampler(tiny_policy, max_sequences=512)
    prompts = [PROMPTS[1]]
    params = SamplingParams(n=64, temperature=0.5, max_tokens=1, top_k=3)
    rollouts = sampler.sample(prompts, params)
    logits = tiny_policy.model(input_ids=torch.tensor(prompts), use_cache=False).logits[0, -1]
    top_logits, top_tokens = (logits / 0.5).topk(3)
    top_logprobs = dict(zip(top_tokens.tolist(), log_softmax(top_logits, -1).tolist(), strict=True))
    assert set(rollouts.tokens.tolist()) == set(top_logprobs)
    expected = torch.tensor([top_logprobs[token] for token in rollouts.tokens.tolist()])
    assert_same_logprobs(tiny_policy, rollouts.logprobs, expected)
    for truncation in ({"top_p": 1e-6}, {"min_p": 1.0}):  # only the likeliest token remains
        params = SamplingParams(n=8, temperature=0.5, max_tokens=1, **truncation)
        rollouts = sampler.sample(prompts, params)
        assert (rollouts.tokens == top_tokens[0]).all()
        assert (rollouts.logprobs == 0).all()
