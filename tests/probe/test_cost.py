"""The cost of a step that is scaled from measured passes."""

from srt_fast.probe.cost import Cost, StepCost, first_groups, scale_to_step
from support.rollouts import random_rollouts


def test_a_step_is_proportional_to_its_completions():
    """Eight prompts of four, of which half train and are sampled by a teacher: 32 + 16, and 16."""
    step = scale_to_step(
        Cost(completions=100, tokens=1000, seconds=50.0),
        Cost(completions=40, tokens=800, seconds=20.0),
        prompts=8,
        group_size=4,
        taught=0.5,
        mixed=0.5,
    )
    assert step == StepCost(
        sampled_completions=48,
        sampled_tokens=480,
        trained_completions=16,
        trained_tokens=320,
        seconds_sample=24.0,
        seconds_train=8.0,
    )


def test_first_groups_are_whole(tiny_policy):
    """Completions of 1 to 6 tokens, three of each of two prompts."""
    rollouts = random_rollouts(tiny_policy, 3, ("1+2=", "30+4="))
    first = first_groups(rollouts, 1)
    assert first.tokens.equal(rollouts.tokens[:6]) and len(first.logprobs) == 6
    assert first.cu_seqlens.tolist() == [0, 1, 3, 6]
    assert first.cu_groups.tolist() == [0, 3]
    assert (len(first.truncated), first.prompts) == (3, rollouts.prompts[:1])
    assert (first.layout.lengths, first.layout.group_sizes) == ([1, 2, 3], [3])
    assert first_groups(rollouts, 5).tokens.equal(rollouts.tokens)
