"""A step's seconds and utilization, by a clock of whole seconds."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from srt_fast.distributed.world import ONE_PROCESS
from srt_fast.types import Layout
from srt_fast.utilization import meter as meter_module
from srt_fast.utilization.meter import StepMeter
from srt_fast.utilization.rates import measure_rates
from support.utilization import make_limit

# Prompts of 2 and 1 tokens with completions of 1 and 3, and of 2.
LAYOUT = Layout(lengths=[1, 3, 2], group_sizes=[2, 1])
ROLLOUTS = SimpleNamespace(layout=LAYOUT, prompts=[[7, 7], [7]])


@pytest.fixture
def clock(monkeypatch):
    """Calling it lets seconds pass."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def take_step(meter: StepMeter, wait) -> None:
    """2 s of sampling, 4 of rewards with 1 of a teacher's sampling and 1 of scoring, and so on."""
    meter.start()
    with meter.part("sample"):
        wait(2)
    with meter.part("reward"):
        wait(2)
        with meter.part("sample"):
            wait(1)
        with meter.part("score"):
            wait(1)
    with meter.part("train"):
        with meter.part("score"):
            wait(3)
        wait(5)
    with meter.part("sync"):
        wait(7)
    wait(4)


def test_parts_are_disjoint(clock):
    meter = StepMeter()
    take_step(meter, clock)
    take_step(meter, clock)  # a step begins anew
    assert meter.metrics() == {
        "seconds_sample": 3,
        "seconds_reward": 2,
        "seconds_score": 4,
        "seconds_train": 5,
        "seconds_sync": 7,
        "seconds": 25,
        "sampled_tokens": 0,
    }


def test_scoring_that_the_host_waits_for_later(clock, monkeypatch):
    """On a GPU the device scores for 6 seconds. The host waits for them in training."""

    class DeviceTimer:
        stop = staticmethod(lambda: None)
        seconds = staticmethod(lambda: 6.0)

    monkeypatch.setattr(meter_module, "CudaTimer", DeviceTimer)
    meter = StepMeter(torch.device("cuda"))
    with meter.part("reward"):
        clock(2)
        with meter.part("score"):
            clock(1)
    with meter.part("train"):
        clock(10)
    values = meter.metrics()
    assert values["seconds_reward"] == 0
    assert values["seconds_score"] == 6
    assert values["seconds_train"] == 7


def test_utilization(clock):
    """Worked by hand, with the round figures of make_limit."""
    meter = StepMeter()
    meter.limit = make_limit(weights=100, head_weights=50)
    take_step(meter, clock)
    meter.count_sampling(ROLLOUTS)
    meter.count_scoring(ROLLOUTS, [1])
    meter.count_training(ROLLOUTS, [0, 2])
    # Prefill: prompts of 2 and 1 tokens, 3 + 1 pairs, 2 targets.
    prefill = 200 * 3 + 10 * 4 + 100 * 2
    # Decoding: 2 tokens that see 3 and 4 keys, and 1 that sees 2. The longest takes 2 steps.
    decoding = 200 * 3 + 10 * 9 + 100 * 3
    read = 4 * (2 * 150 + 5 * 9)
    # The last token of a completion is no input: sequences of 4, and of 2 and 2.
    score = 200 * 4 + 10 * 10 + 100 * 3
    train = 3 * (200 * 4 + 10 * 6 + 100 * 3)
    values = meter.metrics()
    assert values["sampled_tokens"] == 6
    sample_limit = prefill / 1000 + read / 500
    assert read / 500 > decoding / 1000
    assert values["sample_flops"] == prefill + decoding
    assert values["score_flops"] == score
    assert values["train_flops"] == train
    assert values["sample_mfu"] == pytest.approx((prefill + decoding) / 1000 / 3)
    assert values["score_mfu"] == pytest.approx(score / 1000 / 4)
    assert values["train_mfu"] == pytest.approx(train / 1000 / 5)
    assert values["sample_limit_seconds"] == pytest.approx(sample_limit)
    assert values["limit_share"] == pytest.approx((sample_limit + (score + train) / 1000) / 25)


def test_what_another_device_samples_has_no_limit(clock):
    meter = StepMeter()
    meter.limit = make_limit(weights=100, head_weights=50, times_sampling=False)
    take_step(meter, clock)
    meter.count_sampling(ROLLOUTS)
    meter.count_training(ROLLOUTS, [0])
    values = meter.metrics()
    assert values["sample_flops"] and values["train_mfu"]
    for name in ("sample_mfu", "sample_limit_seconds", "limit_share", "score_mfu"):
        assert values[name] is None


def test_rates_are_those_of_this_device():
    """Within a factor of 10 of a product and a copy that are timed here: other processes may slow
    either one. The run's random numbers stay.
    """
    state = torch.get_rng_state()
    device = torch.device("cpu")
    rates = measure_rates((256, 128), 2**22, torch.float32, device, ONE_PROCESS)
    assert torch.equal(torch.get_rng_state(), state)
    tokens, weight = torch.ones(4096, 128), torch.ones(256, 128)
    source = torch.ones(2**23, dtype=torch.uint8)
    target = torch.ones_like(source)
    product = shortest(lambda: torch.nn.functional.linear(tokens, weight))
    copy = shortest(lambda: target.copy_(source))
    assert 0.1 < rates.flops * product / (2 * 4096 * 256 * 128) < 10
    assert 0.1 < rates.bandwidth * copy / 2**24 < 10
    assert rates.product == "float32 [4096, 128] x [128, 256]"


def shortest(function) -> float:
    """Seconds of the fastest of five calls."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_a_shared_prompt_counts_once():
    """A prompt of 2 tokens, completions of 0 and 2 inputs: the latter see 3 and 4 keys."""
    flops = []
    for shares_prompts in (True, False):
        meter = StepMeter()
        meter.limit = replace(
            make_limit(weights=100, head_weights=50), shares_prompts=shares_prompts
        )
        meter.count_scoring(ROLLOUTS, [0, 1])
        flops.append(meter.metrics()["score_flops"])
    assert flops[0] == 200 * 4 + 10 * (3 + 7) + 100 * 4
    assert flops[1] == 200 * 6 + 10 * (3 + 10) + 100 * 4
