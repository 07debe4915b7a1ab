"""The probe's draws. What it does to a run is in test_actions.py."""

import torch

from srt_fast.collapse.probe import CollapseProbe, Draw
from srt_fast.config import Config, override
from srt_fast.model.loading import load_policy
from srt_fast.sampling.hf import HFSampler
from srt_fast.tasks import make_task
from srt_kernels import AnswerReader

DRAWS: list[tuple[int, Draw]] = [
    (0, "votes"),
    (0, "completions"),
    (0, "look"),
    (5, "look"),
    (10, "look"),
]


def make_probe(config: Config) -> CollapseProbe:
    task = make_task(config)
    policy = load_policy(config.model.path, config.model)
    sampler = HFSampler(policy, max_sequences=64)
    reader = AnswerReader(policy.tokenizer, config.task.answer_rule)
    return CollapseProbe(config, task, policy, sampler, reader, lambda: None)


def test_each_draw_is_fresh_and_a_resumed_run_repeats_it(tiny_config):
    """Dependent looks would void the alarm's bound."""
    probe = make_probe(tiny_config)
    random_state = torch.get_rng_state()
    draws = [probe._sample(2, step, draw).tokens.tolist() for step, draw in DRAWS]
    assert all(draw not in draws[:index] for index, draw in enumerate(draws))
    assert probe._sample(2, 5, "look").tokens.tolist() == draws[3]
    assert torch.get_rng_state().equal(random_state)
    other = make_probe(override(tiny_config, {"train.seed": 1}))
    assert other._sample(2, 5, "look").tokens.tolist() != draws[3]
