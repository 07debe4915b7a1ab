"""Passes with a group's prompt computed once, against one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srt_fast.config import ModelConfig
from srt_fast.model.logprobs import head_inputs
from srt_fast.model.packing_check import PARITY_BFLOAT16
from srt_fast.model.policy import Policy
from srt_fast.packing.micro_batches import pack
from srt_fast.quickstart import build_tokenizer
from srt_fast.types import Layout, Rollouts
from srt_kernels import linear_logprob
from support.models import ARCHITECTURES, make_model, make_policy, rounding_error

# The prompt's length and those of the completions, for each group. There are prompts and
# completions of one token, a group of one, and prompts longer than the sliding window of 4.
GROUPS = [(1, [3, 2, 4]), (9, [6, 1, 20, 2]), (4, [5]), (6, [1, 1, 1]), (18, [17, 18, 30])]
BUDGETS = {"one micro-batch": 10**9, "groups are cut": 30}
# The terms of the sums one behind the other, in each of two layers and the head: q, k, v and their
# output (4 * 32), attention (48), the MLP's products (32 and at most 128), the head (32).
TERMS = 2 * (4 * 32 + 48 + 32 + 128) + 32

Results = tuple[Tensor, dict[str, Tensor]]
"""Log-probs [N], and the gradients of their weighted sum."""


def make_rollouts() -> Rollouts:
    """Random tokens."""
    torch.manual_seed(3)
    lengths = [length for _, group in GROUPS for length in group]
    layout = Layout(lengths=lengths, group_sizes=[len(group) for _, group in GROUPS])
    return Rollouts(
        tokens=torch.randint(10, 200, (sum(lengths),)),
        cu_seqlens=torch.tensor(layout.offsets, dtype=torch.int32),
        cu_groups=torch.tensor(layout.group_bounds, dtype=torch.int32),
        logprobs=torch.zeros(sum(lengths)),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
        prompts=[torch.randint(10, 200, (length,)).tolist() for length, _ in GROUPS],
        layout=layout,
    )


ROLLOUTS = make_rollouts()
WEIGHTS = torch.randn(len(ROLLOUTS.tokens), generator=torch.Generator().manual_seed(4))


def packed_results(policy: Policy, token_budget: int) -> Results:
    logprobs = torch.empty(len(WEIGHTS), dtype=torch.float64)
    count = len(ROLLOUTS.truncated)
    share = policy.shares_prompts
    for batch in pack(ROLLOUTS, torch.ones(count), range(count), token_budget, share_prompts=share):
        tensors, options = head_inputs(policy, batch, 1.0)
        values, _ = linear_logprob(*tensors, **options)
        (values * WEIGHTS[batch.token_index]).sum().backward()
        logprobs[batch.token_index] = values.detach().double()
    return logprobs, take_gradients(policy)


def results_alone(policy: Policy) -> Results:
    """Of the model itself, one sequence at a time."""
    offsets = ROLLOUTS.layout.offsets
    logprobs = []
    for rollout, group in enumerate(ROLLOUTS.layout.groups):
        part = slice(offsets[rollout], offsets[rollout + 1])
        targets = ROLLOUTS.tokens[part]
        ids = torch.cat([torch.tensor(ROLLOUTS.prompts[group]), targets])
        logits = policy.model(input_ids=ids[None], use_cache=False).logits[0]
        rows = logits[-len(targets) - 1 : -1].log_softmax(1)
        values = rows.gather(1, targets[:, None])[:, 0]
        (values * WEIGHTS[part]).sum().backward()
        logprobs.append(values.detach().double())
    return torch.cat(logprobs), take_gradients(policy)


def take_gradients(policy: Policy) -> dict[str, Tensor]:
    gradients = {name: weight.grad for name, weight in policy.model.named_parameters()}
    policy.model.zero_grad()
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.parametrize("token_budget", BUDGETS.values(), ids=BUDGETS.keys())
@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_shared_and_one_at_a_time_agree(config, token_budget):
    """Log-probs and all gradients, in double precision."""
    policy = make_policy(config, share_prompts=True, gradient_checkpointing=token_budget == 30)
    assert policy.shares_prompts
    policy.model.double()
    logprobs, gradients = packed_results(policy, token_budget)
    alone, alone_gradients = results_alone(policy)
    tolerance = rounding_error(TERMS, alone.abs().max().item(), 2**-53)
    assert (logprobs - alone).abs().max() <= tolerance
    assert gradients.keys() == alone_gradients.keys()
    # Backward sums over the vocabulary and over all tokens too. A cut group repeats its prompt.
    # RMSNorm rounds to float32, here before the completions' gradients are summed and there after.
    terms = 2 * TERMS + 265 + sum(len(group) * length + sum(group) for length, group in GROUPS)
    size = max(gradient.abs().max().item() for gradient in alone_gradients.values())
    for name, gradient in alone_gradients.items():
        error = (gradients[name] - gradient).abs().max()
        assert error <= rounding_error(terms, size, 2**-24), name


def test_shared_and_apart_agree_under_autocast():
    """Both ways round to bfloat16 about 40 times one behind the other, in both directions."""
    config = ARCHITECTURES["query norms, tied head"]
    policy = make_policy(config, share_prompts=True, autocast="bfloat16")
    assert policy.shares_prompts
    logprobs, gradients = packed_results(policy, 10**9)
    policy.shares_prompts = False
    apart, apart_gradients = packed_results(policy, 10**9)
    assert (logprobs - apart).abs().max() <= PARITY_BFLOAT16 * apart.abs().max()
    flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
    flat_apart = torch.cat([gradient.flatten() for gradient in apart_gradients.values()])
    assert (flat - flat_apart).norm() <= 4 * 40**0.5 * 2**-9 * flat_apart.norm()


def test_a_model_that_cannot_share_says_why():
    """Its positions begin anew at each segment, as in a model that reads cu_seq_lens_q for them."""

    def restart_positions(module, args, kwargs):
        starts = kwargs.get("cu_seq_lens_q")
        if starts is not None:
            lengths = starts.diff()
            places = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(lengths)
            kwargs["position_ids"] = places[None].long()
        return args, kwargs

    model = make_model(ARCHITECTURES["query norms, tied head"])
    model.base_model.register_forward_pre_hook(restart_positions, with_kwargs=True)
    policy = Policy(model, build_tokenizer(), ModelConfig(), share_prompts=True)
    assert not policy.shares_prompts
    assert "packed hidden states times the LM head" in policy.sharing_obstacle


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_layer_that_mixes_positions_of_a_sequence_shares_nothing(scale):
    """A convolution of two tokens that begins anew at each segment, also while its weight is 0."""
    model = make_model(ARCHITECTURES["query norms, tied head"])
    tap = torch.nn.Parameter(torch.full((32,), scale))
    starts = []

    def read_starts(module, args, kwargs):
        starts.append(kwargs.get("cu_seq_lens_q"))

    def convolve(module, args, output):
        before = torch.nn.functional.pad(output[:, :-1], (0, 0, 1, 0))
        if starts[-1] is not None:
            before[:, starts[-1][:-1].long()] = 0
        return output + before * tap

    model.base_model.register_forward_pre_hook(read_starts, with_kwargs=True)
    model.base_model.layers[0].input_layernorm.register_forward_hook(convolve)
    policy = Policy(model, build_tokenizer(), ModelConfig(), share_prompts=True)
    assert not policy.shares_prompts
    assert scale or "only attention mixes positions" in policy.sharing_obstacle
