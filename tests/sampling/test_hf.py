import torch
from torch.nn.functional import log_softmax

from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.hf import HFSampler, _draw

PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64], [1, 40, 41]]


def score(policy, prompt, tokens, temperature):
    logits = policy.model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0]
    rows = log_softmax(logits.float() / temperature, -1)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]


@torch.no_grad()
def test_logprobs_are_the_models_at_every_temperature(tiny_policy):
    """Left padding, batching, temperature and the model's own generation settings change nothing: the sampler's
    log-probs are the trainer's."""
    own = tiny_policy.model.generation_config
    own.repetition_penalty, own.min_p, own.no_repeat_ngram_size = 3.0, 0.9, 2
    for temperature in (1.0, 0.7):
        torch.manual_seed(1)
        rollouts = HFSampler(tiny_policy, max_sequences=5).sample(
            PROMPTS, SamplingParams(n=3, temperature=temperature, max_tokens=6)
        )
        cu = rollouts.cu_seqlens.tolist()
        assert rollouts.cu_groups.tolist() == [0, 3, 6, 9, 12]
        for i, (a, b) in enumerate(zip(cu, cu[1:], strict=False)):
            expected = score(
                tiny_policy, PROMPTS[i // 3], rollouts.tokens[a:b].tolist(), temperature
            )
            torch.testing.assert_close(rollouts.logprobs[a:b], expected, rtol=0, atol=1e-5)
    assert rollouts.logprobs.min() < -5  # min_p 0.9 would have left likely tokens only


def test_ends_at_the_first_end_token_and_counts_cut_ones(tiny_policy):
    with torch.no_grad():  # make the end token likely
        tiny_policy.model.lm_head.weight[2] += (
            tiny_policy.model.lm_head.weight.std() * 20 * torch.randn(32).sign()
        )
    torch.manual_seed(0)
    rollouts = HFSampler(tiny_policy, max_sequences=512).sample(
        PROMPTS, SamplingParams(n=16, temperature=1.0, max_tokens=4)
    )
    cu, ends = rollouts.cu_seqlens.tolist(), 0
    for i, (a, b, cut) in enumerate(zip(cu, cu[1:], rollouts.truncated.tolist(), strict=False)):
        tokens = rollouts.tokens[a:b].tolist()
        assert (2 in tokens) == (not cut) and 2 not in tokens[:-1] and (len(tokens) == 4 or not cut)
        ends += not cut
        with torch.no_grad():  # the others go on as if they had been alone
            expected = score(tiny_policy, PROMPTS[i // 16], tokens, 1.0)
        torch.testing.assert_close(rollouts.logprobs[a:b], expected, rtol=0, atol=1e-5)
    assert 0 < ends < 64  # both cases were seen


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Frequencies within 5 standard errors; a token without probability, first, last or in the middle, never."""
    probabilities = torch.tensor([0, 0.5, 1e-3, 0, 0.25, 0.249, 0])
    torch.manual_seed(0)
    count = 200_000
    found = _draw(probabilities.log().expand(count, -1)).bincount(minlength=7) / count
    assert (
        (found - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / count).sqrt()
    ).all()


def test_greedy_and_seeded(tiny_policy):
    sampler = HFSampler(tiny_policy, max_sequences=512)
    greedy = [
        sampler.sample(PROMPTS, SamplingParams(n=1, temperature=0.0, max_tokens=4)).tokens
        for _ in range(2)
    ]
    assert greedy[0].equal(greedy[1])
    logits = tiny_policy.model(input_ids=torch.tensor([PROMPTS[1]]), use_cache=False).logits[0, -1]
    start = sampler.sample(PROMPTS, SamplingParams(n=1, temperature=0.0, max_tokens=4))
    assert start.tokens[start.cu_seqlens[1]] == logits.argmax()
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(
            sampler.sample(PROMPTS, SamplingParams(n=4, temperature=1.0, max_tokens=4)).tokens
        )
    assert draws[0].equal(draws[1])


@torch.no_grad()
def test_truncated_logprobs_are_those_of_the_tokens_that_are_left(tiny_policy):
    """top_k 3 after the temperature: three tokens share the probability, and only they are sampled."""
    sampler = HFSampler(tiny_policy, max_sequences=512)
    rollouts = sampler.sample(
        [PROMPTS[1]], SamplingParams(n=64, temperature=0.5, max_tokens=1, top_k=3)
    )
    logits = (
        tiny_policy.model(input_ids=torch.tensor([PROMPTS[1]]), use_cache=False).logits[0, -1] / 0.5
    )
    values, tokens = logits.topk(3)
    expected = dict(zip(tokens.tolist(), log_softmax(values, -1).tolist(), strict=True))
    assert set(rollouts.tokens.tolist()) == set(expected)
    of_each = torch.tensor([expected[token] for token in rollouts.tokens.tolist()])
    torch.testing.assert_close(rollouts.logprobs, of_each, rtol=0, atol=1e-5)
    for truncation in ({"top_p": 1e-6}, {"min_p": 1.0}):  # nothing but the likeliest token
        only = sampler.sample(
            [PROMPTS[1]], SamplingParams(n=8, temperature=0.5, max_tokens=1, **truncation)
        )
        assert (only.tokens == tokens[0]).all() and (only.logprobs == 0).all()
