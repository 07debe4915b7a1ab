"""What sft, dpo and scpo train on, and their gradients against the formulas on whole logits."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from srt_fast.config import Config, override
from srt_fast.learner import Learner
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy
from srt_fast.rewards.preferences import choose_completions, choose_pairs, pair_loss
from srt_fast.types import Reward, Rollouts
from support.rollouts import random_rollouts

NAN = float("nan")
# Groups: shares; unanimous and right; unanimous and wrong; the best one masked; unknown rewards;
# all masked.
REWARDS = [0.5, 0.5, 0.25, 0.25, 1, 1, 0, 0, 1, 0, 0.5, NAN, -7, -1, 1, 0]
CU_GROUPS = torch.tensor([0, 4, 6, 8, 11, 14, 16], dtype=torch.int32)
MASKED = (8, 14, 15)


def make_reward() -> Reward:
    keep = torch.ones(len(REWARDS), dtype=torch.bool)
    keep[list(MASKED)] = False
    return Reward(rewards=torch.tensor(REWARDS), keep=keep)


def test_choices_by_hand():
    reward = make_reward()
    trains = choose_completions(reward, CU_GROUPS).nonzero()[:, 0].tolist()
    assert trains == [0, 1, 4, 5, 10, 13]
    pairs = choose_pairs(reward, CU_GROUPS)
    assert pairs.exists.tolist() == [True, False, False, True, True, False]
    exists = pairs.exists
    assert pairs.chosen[exists].tolist() == [0, 10, 13]
    assert pairs.rejected[exists].tolist() == [2, 9, 12]
    assert pairs.weights[exists].tolist() == [0.25, 0.5, 6]


@pytest.mark.parametrize("nll", [0.0, 0.3])
def test_slopes_are_the_gradient_of_the_loss(nll):
    """Against autograd, in fp64, with margins from -90 to 90."""
    chosen = torch.tensor([-300.0, -12.0, -1.0, -900.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-4.0, -12.5, -2.0, -1.0], dtype=torch.float64, requires_grad=True)
    references = torch.tensor([[-1200.0, -12.0, -1.5, -1.0], [-4.0, -11.0, -2.0, -2.0]])
    weights = torch.tensor([1.0, 0.5, 0.25, 1.0])
    nll_weights = torch.full((4,), nll)
    result = pair_loss(
        chosen, rejected, *references, beta=0.1, weights=weights, nll_weights=nll_weights
    )
    difference = (chosen - references[0]) - (rejected - references[1])
    loss = weights * (-logsigmoid(0.1 * difference) - nll_weights * chosen)
    torch.testing.assert_close(result.loss, loss)
    gradients = torch.autograd.grad(loss.sum(), (chosen, rejected))
    torch.testing.assert_close(-result.chosen_slope, gradients[0])
    torch.testing.assert_close(-result.rejected_slope, gradients[1])


def logprobs_of(policy: Policy, rollouts: Rollouts) -> list[torch.Tensor]:
    """[tokens] log-probs of each completion at temperature 1, from whole logits."""
    logprobs = []
    for index, (first, last) in enumerate(itertools.pairwise(rollouts.layout.offsets)):
        prompt = rollouts.prompts[rollouts.layout.groups[index]]
        tokens = rollouts.tokens[first:last]
        ids = torch.cat([torch.tensor(prompt), tokens])
        logits = policy.model(ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs.append(logits.log_softmax(1).gather(1, tokens[:, None])[:, 0])
    return logprobs


def expected_loss(name: str, policy: Policy, rollouts: Rollouts, config: Config) -> torch.Tensor:
    """The loss of the rewards below, term by term."""
    logprobs = logprobs_of(policy, rollouts)
    if name == "sft":
        return -torch.cat([logprobs[1], logprobs[3], logprobs[4]]).mean()
    references = rollouts.logprobs.split(rollouts.layout.lengths)
    terms = []
    for chosen, rejected, weight in ((1, 0, 0.75), (3, 5, 0.5)):
        margin = logprobs[chosen].sum() - references[chosen].sum()
        margin = margin - (logprobs[rejected].sum() - references[rejected].sum())
        term = -logsigmoid(config.train.dpo_beta * margin)  # as TRL's DPOTrainer, loss "sigmoid"
        if name == "scpo":
            term = weight * (term - config.train.scpo_nll * logprobs[chosen].mean())
        terms.append(term)
    return torch.stack(terms).mean()


STEP_REWARD = Reward(
    rewards=torch.tensor([0.25, 1.0, 0.5, 0.5, 0.5, 0.0]), keep=torch.ones(6, dtype=torch.bool)
)


def make_step(name: str, policy: Policy, config: Config) -> tuple[Learner, Rollouts]:
    """A learner, and rollouts of 1 to 6 tokens whose reference is another model's."""
    config = override(
        config,
        {
            "train": {"objective": name, "token_budget": 10, "dpo_beta": 0.3, "scpo_nll": 0.7},
            "sampling.temperature": 0.5,  # has no effect
        },
    )
    learner = Learner(config, policy, None, lambda: None)
    rollouts = learner.set_reference(random_rollouts(policy, 3, ("1+2=", "30+4=")))
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.3 * weight.std() * torch.randn_like(weight))
    return learner, rollouts


@pytest.mark.parametrize("name", ["sft", "dpo", "scpo"])
def test_a_step_has_the_gradient_of_the_formula(tiny_policy, tiny_config, name):
    """Also where the two of a pair are in two micro-batches.

    The bar: two fp32 passes whose sums of at most 48 terms go through two layers, so about
    100 x 2^-24 = 6e-6 of the largest gradient.
    """
    learner, rollouts = make_step(name, tiny_policy, tiny_config)
    [micro_batches] = learner.pack(rollouts, STEP_REWARD)
    assert len(micro_batches) > 2
    for batch in micro_batches:
        learner.loss(batch).backward()
    parameters = [weight for weight in tiny_policy.model.parameters() if weight.requires_grad]
    actual = [weight.grad.clone() for weight in parameters]
    loss = expected_loss(name, tiny_policy, rollouts, learner._config)
    expected = torch.autograd.grad(loss, parameters)
    largest = max(gradient.abs().max() for gradient in expected)
    for gradient, other in zip(actual, expected, strict=True):
        assert (gradient - other).abs().max() <= 1e-5 * largest
    learner.step({})
    figures = learner.end_step()
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert "train_mismatch_max" not in figures
    assert ("pairs" in figures) == (name != "sft")


@pytest.mark.parametrize("name", ["sft", "dpo", "scpo"])
def test_steps_raise_what_the_reward_prefers(tiny_policy, tiny_config, name):
    """The margin of the pairs rises over ten steps. sft and scpo raise the chosen log-probs."""
    learner, rollouts = make_step(name, tiny_policy, tiny_config)

    def sums() -> list[float]:
        with torch.no_grad():
            return [logprobs.sum().item() for logprobs in logprobs_of(tiny_policy, rollouts)]

    before = sums()
    for _ in range(10):
        for batch in learner.pack(rollouts, STEP_REWARD)[0]:
            learner.loss(batch).backward()
        learner.step({})
        learner.end_step()
    gains = [after - start for after, start in zip(sums(), before, strict=True)]
    assert gains[1] > gains[0] and gains[3] > gains[5]
    if name != "dpo":
        assert gains[1] > 0 and gains[3] > 0


def test_weights_of_prompts_scale_the_pairs(tiny_policy, tiny_config):
    learner, rollouts = make_step("dpo", tiny_policy, tiny_config)
    plain, _ = learner._supervised_targets(rollouts, STEP_REWARD)
    weights = torch.tensor([2.0] * 3 + [0.5] * 3)
    weighted, _ = learner._supervised_targets(rollouts, replace(STEP_REWARD, weights=weights))
    torch.testing.assert_close(weighted, weights * plain)


def test_the_reference_is_the_policy_that_sampled(tiny_policy, tiny_config):
    """At temperature 1. sft keeps the sampler's log-probs."""
    learner, rollouts = make_step("sft", tiny_policy, tiny_config)
    assert (rollouts.logprobs == 0).all()
    config = override(learner._config, {"train.objective": "dpo"})
    learner = Learner(config, tiny_policy, None, lambda: None)
    scored = learner.set_reference(rollouts)
    expected = rollout_logprobs(
        tiny_policy, rollouts, range(6), temperature=1.0, token_budget=config.train.token_budget
    )
    assert scored.logprobs.equal(expected)
