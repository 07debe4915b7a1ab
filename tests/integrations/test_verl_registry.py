"""The vote and the fused log-prob in verl's registries, beside verl's own."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from srt_kernels.groups.group_advantage import KINDS
from srt_kernels.testing import assert_close, packed_rollouts

core_algos = pytest.importorskip(
    "verl.trainer.ppo.core_algos", reason="verl is not installed: make test installs it"
)
from verl.trainer.config import AlgoConfig  # noqa: E402
from verl.utils.experimental.torch_functional import FusedLinearForPPO  # noqa: E402

from srt_fast.integrations import verl as integration  # noqa: E402

LENGTHS = [3, 1, 5, 0, 7, 1, 9, 2]
RESULTS = ("logprobs", "entropies", "dhidden", "dweight")

# Two prompts with mixed rollouts. b answers 1/2 in two spellings, and once nothing. a answers 3, 3,
# 4, 3.
UIDS = ["b", "a", "b", "a", "a", "b", "a"]
TEXTS = [
    r"\boxed{0.5}",
    r"\boxed{3}",
    r"\boxed{\frac12}",
    r"\boxed{3.0}",
    r"\boxed{4}",
    "no",
    r"so \boxed{3}",
]
AGREES = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0]


# ---- the vote ----


def token_rewards(scores: list[float], length: int = 4) -> Tensor:
    """As verl's reward loop leaves them: fp32, the score at one of the tokens."""
    padded = torch.zeros(len(scores), length)
    padded[:, 2] = torch.tensor(scores)
    return padded


def answer_scores() -> list[float]:
    return [integration.answer_score("math", text, None)["score"] for text in TEXTS]


@pytest.mark.parametrize("kind", KINDS)
def test_majority_advantage(kind):
    mask = torch.tensor([[1, 1, 1, 0]] * 6 + [[1, 0, 0, 0]])
    estimate = core_algos.get_adv_estimator_fn(f"majority_{kind}")
    advantages, returns = estimate(
        token_level_rewards=token_rewards(answer_scores()),
        response_mask=mask,
        index=UIDS,
        config=None,
    )
    a = 1 / 4  # rewards minus their mean: [1, 1, 0, 1] of prompt a
    b = 1 / 3  # and [1, 1, 0] of prompt b
    centred = torch.tensor([b, a, b, a, a - 1, b - 1, a])
    deviation = torch.tensor([{"a": 0.5, "b": 3**-0.5}[uid] for uid in UIDS])
    leave_one_out = torch.tensor([{"a": 4 / 3, "b": 3 / 2}[uid] for uid in UIDS])
    expected = {
        "grpo": centred / (deviation + 1e-4),
        "mean": centred,
        "rloo": centred * leave_one_out,
        "batch": centred / (centred.square().mean().sqrt() + 1e-4),
    }[kind]
    # fp32 values of about 1, after a few roundings of 2^-24 each
    # Advantages of size 1 to 2 with a few fp32 roundings, on both sides.
    assert_close("advantages", advantages, expected[:, None] * mask, atol=16 * 2**-24)
    assert torch.equal(advantages, returns)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_majority_is_verls_estimator_of_the_vote(name):
    mask = torch.ones(7, 4)
    verl_estimate = core_algos.get_adv_estimator_fn(name)
    expected, _ = verl_estimate(token_rewards(AGREES), mask, UIDS)
    estimate = core_algos.get_adv_estimator_fn(f"majority_{name}")
    advantages, _ = estimate(token_rewards(answer_scores()), mask, UIDS)
    # verl adds 1e-6 to the deviation. We add 1e-4, as TRL does.
    assert_close(name, advantages, expected, atol=4e-4)


def test_majority_without_answers_and_without_rows():
    estimate = core_algos.get_adv_estimator_fn("majority_grpo")
    advantages, _ = estimate(torch.zeros(3, 2), torch.ones(3, 2), [1, 1, 2])
    assert advantages.count_nonzero() == 0
    advantages, _ = estimate(torch.zeros(0, 2), torch.ones(0, 2), [])
    assert advantages.shape == (0, 2)


def test_masked_rows_do_not_vote():
    """Rows 1 and 2 were rejected. All rows would have the majority 2."""
    mask = torch.tensor([[1, 1], [0, 0], [0, 0], [1, 0], [1, 1]])
    rewards = torch.tensor([[0.0, 1], [0, 2], [0, 2], [1, 0], [0, 2]])
    estimate = core_algos.get_adv_estimator_fn("majority_mean")
    advantages, _ = estimate(rewards, mask, ["a"] * 5)
    expected = torch.tensor([1 / 3, 0, 0, 1 / 3, -2 / 3])[:, None] * mask
    # fp32 values below 1, after a few roundings of 2^-24 each.
    assert_close("advantages", advantages, expected, atol=4 * 2**-24)
    advantages, _ = estimate(rewards, torch.zeros_like(mask), ["a"] * 5)
    assert advantages.count_nonzero() == 0


NOT_SCORES = {
    "a fraction": [0.0, 0.5, 0, 0],
    "below 0": [0.0, -1, 0, 0],
    "too large": [0.0, 1 << 24, 0, 0],
    "nan": [0.0, torch.nan, 0, 0],
    "a KL of 0.1 at each token, whose fp32 sum is a score": [-0.1, -0.1, (1 << 23) - 0.1, 0],
    "two scores": [0.0, 2, 3, 0],
}


@pytest.mark.parametrize("rewards", NOT_SCORES.values(), ids=NOT_SCORES)
def test_majority_refuses_what_answer_score_does_not_make(rewards):
    estimate = core_algos.get_adv_estimator_fn("majority_grpo")
    rewards = torch.tensor([[0.0, 0, 3, 0], rewards])
    expected = r"token_level_rewards: expected one score of answer_score.*got \[\["
    with pytest.raises(ValueError, match=expected):
        estimate(rewards, torch.ones(2, 4), ["a", "a"])


def test_majority_refuses_a_kl_in_the_reward():
    """Also before the KL can be seen: at the first step it is 0."""
    estimate = core_algos.get_adv_estimator_fn("majority_grpo")
    config = AlgoConfig(use_kl_in_reward=True)
    with pytest.raises(ValueError, match="use_kl_in_reward: expected False.*got True"):
        estimate(torch.ones(2, 1), torch.ones(2, 1), ["a", "a"], config=config)


def test_answer_score():
    score = partial(integration.answer_score, "math")
    assert score(r"\boxed{0.5}", "1/2") == score(r"\boxed{\frac{1}{2}}", "1/2") | {"acc": 1.0}
    wrong = score(r"\boxed{7.}", "8")
    assert (wrong["pred"], wrong["acc"]) == ("7", 0.0)
    assert score("nothing", "8") == {"score": 0.0, "pred": "", "acc": 0.0}
    assert score("it is 12", None, rule="last_number")["acc"] is None
    with pytest.raises(ValueError, match="rule"):
        score("x", None, rule="guess")


def test_answer_scores_are_exact_in_fp32_and_differ():
    scores = [
        integration.answer_score("math", f"\\boxed{{{number}}}", None)["score"]
        for number in range(2000)
    ]
    assert torch.tensor(scores).double().tolist() == scores
    assert min(scores) >= 1
    assert len(set(scores)) >= 1999  # 2000^2 / 2^25 = 0.1 expected collisions


# ---- the fused log-prob ----


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_linear_cross_entropy(temperature):
    """verl's torch implementation, with [1, N] as its models call it."""
    batch = packed_rollouts(LENGTHS, with_bias=False, temperature=temperature)
    generator = torch.Generator().manual_seed(1)
    dlogprobs, dentropies = torch.randn(2, sum(LENGTHS), generator=generator)

    def results(function) -> list[Tensor]:
        hidden = batch.hidden[None].clone().requires_grad_()
        weight = batch.weight.clone().requires_grad_()
        logprobs, entropies = function(hidden, weight, batch.targets[None], temperature)
        logprobs = logprobs.flatten()
        entropies = entropies.flatten()
        loss = logprobs @ dlogprobs + entropies @ dentropies
        return [logprobs.detach(), entropies.detach(), *torch.autograd.grad(loss, [hidden, weight])]

    expected = results(FusedLinearForPPO())
    actual = results(integration.linear_cross_entropy)
    # Logits up to 50 are fp32 sums of 48 terms, in both. A log-prob has their errors.
    tolerance = 2 * 48 * 2**-24 * 50 / temperature
    for name, actual_part, expected_part in zip(RESULTS, actual, expected, strict=True):
        assert_close(name, actual_part, expected_part, rtol=tolerance)


def test_linear_cross_entropy_reductions():
    batch = packed_rollouts(LENGTHS)
    head = (batch.hidden, batch.weight)
    logprobs, entropies = integration.linear_cross_entropy(*head, batch.targets.int())
    assert logprobs.shape == entropies.shape == (sum(LENGTHS),)
    for reduction, expected in (("sum", logprobs.sum()), ("mean", logprobs.mean())):
        reduced, unreduced = integration.linear_cross_entropy(*head, batch.targets, 1.0, reduction)
        assert torch.equal(reduced, expected)
        assert torch.equal(unreduced, entropies)
    with pytest.raises(ValueError, match="reduction: expected 'none', 'sum' or 'mean', got 'max'"):
        integration.linear_cross_entropy(*head, batch.targets, 1.0, "max")


def run_with_half_of_the_head(rank: int, folder: Path) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    batch = packed_rollouts(LENGTHS, vocab_size=332)
    hidden = batch.hidden.clone().requires_grad_()
    weight = batch.weight.chunk(2)[rank].clone().requires_grad_()
    arguments = (hidden, weight, batch.targets, 0.7, "none", dist.group.WORLD)
    logprobs, entropies = integration.linear_cross_entropy(*arguments)
    with torch.no_grad():
        plain_logprobs, plain_entropies = integration.linear_cross_entropy(*arguments)
    assert torch.equal(logprobs, plain_logprobs)
    assert torch.equal(entropies, plain_entropies)
    grads = torch.autograd.grad(logprobs.sum() - entropies.sum(), [hidden, weight])
    torch.save([logprobs.detach(), entropies.detach(), *grads], f"{folder}/{rank}")
    dist.destroy_process_group()


def test_linear_cross_entropy_tensor_parallel(tmp_path):
    """Each of two processes has half of the vocabulary.

    Both know the results. Gradients by hidden add up. Gradients by weight are those of the halves.
    """
    mp.spawn(run_with_half_of_the_head, (tmp_path,), nprocs=2)
    first = torch.load(tmp_path / "0")
    second = torch.load(tmp_path / "1")
    actual = [first[0], first[1], first[2] + second[2], torch.cat([first[3], second[3]])]

    batch = packed_rollouts(LENGTHS, vocab_size=332)
    hidden = batch.hidden.clone().requires_grad_()
    weight = batch.weight.clone().requires_grad_()
    logprobs, entropies = integration.linear_cross_entropy(hidden, weight, batch.targets, 0.7)
    grads = torch.autograd.grad(logprobs.sum() - entropies.sum(), [hidden, weight])
    expected = [logprobs.detach(), entropies.detach(), *grads]
    for name, actual_part, expected_part in zip(RESULTS, actual, expected, strict=True):
        # Logits up to 50, as above, at temperature 0.7.
        assert_close(name, actual_part, expected_part, rtol=2 * 48 * 2**-24 * 50 / 0.7)


# ---- registration ----


def test_verl_imports_the_module_that_the_variable_names():
    """In a process that imports only verl."""
    code = (
        "import verl; from verl.trainer.ppo.core_algos import get_adv_estimator_fn; "
        "print(get_adv_estimator_fn('majority_rloo'))"
    )
    environment = {
        "VERL_USE_EXTERNAL_MODULES": "srt_fast.integrations.verl",
        "PYTHONPATH": ":".join(sys.path),
    }
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "majority_advantage" in process.stdout, process.stderr
