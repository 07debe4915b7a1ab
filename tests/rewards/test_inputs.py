"""What reward functions read beside the vote: labels, teachers, token statistics, verdicts."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from srt_fast.config import REWARD_KINDS, REWARDS_WITH_GOLD, REWARDS_WITH_TEACHER, override
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.model.logprobs import rollout_statistics
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.base import (
    EMATeacher,
    GoldAnswers,
    PeerVotes,
    StartLabels,
    find_requirement,
)
from srt_fast.rewards.inputs import RewardInputs
from srt_fast.rewards.self_verification import judge_rollouts
from srt_fast.rewards.teacher import Teacher, decay_at
from srt_fast.sampling.hf import HFSampler
from srt_fast.train import Trainer
from srt_fast.types import Problem
from srt_fast.utilization.meter import StepMeter
from srt_kernels import AnswerReader
from srt_kernels.answers.canonical import answer_key
from support.models import sharpen
from support.rollouts import random_rollouts, required_params
from support.utilization import make_limit

PROMPTS = ("1+2=", "30+4=")
PROBLEMS = [Problem(id=prompt, prompt=prompt) for prompt in PROMPTS]


def logits(policy, ids: list[int]) -> torch.Tensor:
    """[T, V] fp64 logits of every position."""
    with torch.no_grad():
        return policy.model(torch.tensor([ids]), use_cache=False).logits[0].double()


def test_statistics_are_those_of_the_full_distribution(tiny_policy):
    """Against the softmax of each rollout alone, in fp64.

    The bar: fp32 logits of size 1 from sums of 32 terms have errors below 32 x 2^-24 = 2e-6 each.
    Entropy and certainty are means of V = 265 of them, through two layers.
    """
    rollouts = random_rollouts(tiny_policy, 3, PROMPTS)
    entropies, certainty = rollout_statistics(
        tiny_policy, rollouts, temperature=0.7, token_budget=40
    )
    bounds = itertools.pairwise(rollouts.cu_seqlens.tolist())
    for index, (first, last) in enumerate(bounds):
        prompt = rollouts.prompts[index // 3]
        ids = prompt + rollouts.tokens[first:last].tolist()
        probs = (logits(tiny_policy, ids)[len(prompt) - 1 : -1] / 0.7).softmax(1)
        entropy = -(probs * probs.log()).sum(1)
        uniform = torch.full_like(probs, 1 / probs.shape[1])
        divergence = (uniform * (uniform / probs).log()).sum(1)
        tolerance = {"rtol": 0, "atol": 2e-5}
        torch.testing.assert_close(entropies[first:last].double(), entropy, **tolerance)
        torch.testing.assert_close(certainty[first:last].double(), divergence, **tolerance)


def test_a_judge_score_is_the_probability_of_yes(tiny_policy, tiny_config):
    config = override(tiny_config, {"task.answer_rule": "last_number"})
    rollouts = random_rollouts(tiny_policy, 3, PROMPTS)
    tokenizer = tiny_policy.tokenizer

    meter = StepMeter()
    meter.limit = make_limit(weights=0, head_weights=1)  # 2 FLOPs a target

    def judge(question: str) -> torch.Tensor:
        return judge_rollouts(
            question, PROBLEMS, rollouts, tiny_policy, config, lambda: None, meter
        )

    scores = judge("{prompt}{completion}?")
    assert meter.metrics()["score_flops"] == 2 * 2 * len(scores)  # a token for each verdict
    for index in (0, 5):
        tokens = rollouts.tokens[rollouts.cu_seqlens[index] : rollouts.cu_seqlens[index + 1]]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        ids = tokenizer(PROBLEMS[index // 3].prompt + text + "?")["input_ids"]
        logprobs = logits(tiny_policy, ids)[-1].log_softmax(0)
        [yes] = tokenizer("1", add_special_tokens=False)["input_ids"]
        [no] = tokenizer("0", add_special_tokens=False)["input_ids"]
        expected = torch.sigmoid(logprobs[yes] - logprobs[no]).item()
        # fp32 logits of size 1: a difference of two has an error below 1e-5 nats.
        assert scores[index].item() == pytest.approx(expected, abs=1e-5)
    assert judge("{completion}" + "?" * 90).isnan().all()  # longer than the context


class CountingSampler(HFSampler):
    """Counts the prompts and the completions that it samples."""

    prompts_sampled = 0
    completions = 0

    def sample(self, prompts, params, *, seeds=None):
        self.prompts_sampled += len(prompts)
        self.completions += len(prompts) * params.n
        return super().sample(prompts, params, seeds=seeds)


def inputs_with_counter(policy, config, tiny_model) -> tuple[RewardInputs, CountingSampler]:
    """Inputs whose starting model samples through a counter."""
    start = load_policy(tiny_model, config.model)
    reader = AnswerReader(policy.tokenizer, "last_number")
    sampler = HFSampler(policy, 64)
    inputs = RewardInputs(config, policy, sampler, reader, lambda: None, lambda: None, start=start)
    counter = CountingSampler(start, 64)
    inputs._start_teacher._hf_sampler = counter
    return inputs, counter


def prompts_of(policy, *texts: str) -> SimpleNamespace:
    return SimpleNamespace(
        problems=[Problem(id=text, prompt=text) for text in texts],
        token_ids=[policy.tokenizer(text)["input_ids"] for text in texts],
    )


def test_the_starting_model_votes_once_on_a_prompt(tiny_policy, tiny_config, tiny_model):
    """A resumed run keeps the labels."""
    requires = (StartLabels(samples=5),)
    inputs, counter = inputs_with_counter(tiny_policy, tiny_config, tiny_model)
    first = inputs.gather(requires, prompts_of(tiny_policy, "1+2=", "2+2="), None, None)
    second = inputs.gather(requires, prompts_of(tiny_policy, "2+2=", "3+3=", "1+2="), None, None)
    assert counter.prompts_sampled == 3
    for name in ("start_labels", "start_shares"):
        assert second[name][[2, 0]].tolist() == first[name].tolist()
    resumed, counter = inputs_with_counter(tiny_policy, tiny_config, tiny_model)
    resumed.load_state_dict(inputs.state_dict())
    third = resumed.gather(requires, prompts_of(tiny_policy, "3+3="), None, None)
    assert counter.prompts_sampled == 0
    assert third["start_labels"][0] == second["start_labels"][1]


def test_labels_from_a_file(tiny_policy, tiny_config, tmp_path):
    file = tmp_path / "labels.jsonl"
    requires = (StartLabels(file=str(file)),)

    def gather(*texts: str) -> dict[str, torch.Tensor]:
        inputs = RewardInputs(tiny_config, tiny_policy, None, None, lambda: None, lambda: None)
        return inputs.gather(requires, prompts_of(tiny_policy, *texts), None, None)

    rows = '{"prompt": "1+2=", "label": 3}\n{"prompt": "2+2=", "label": "\\\\frac{8}{2}"}\n'
    file.write_text(rows)
    inputs = gather("2+2=", "9+9=", "1+2=")
    assert inputs["start_labels"].tolist() == [answer_key("4"), 0, answer_key("3")]
    assert inputs["start_shares"].tolist() == [1, 0, 1]
    file.write_text('{"prompt": "1+2=", "label": 3}\n{"prompt": "2+2="}\n')
    message = r"expected prompt and label in every row of .*, got a row without \(line 2\)"
    with pytest.raises(ValueError, match=message):
        gather("1+2=")


@pytest.mark.parametrize(
    ("keys", "asked"),
    [([7, 7, 7, 8, 7, 0, 0, 0], [1, 2]), ([7] * 8, []), ([7, 8] * 4, [0, 1, 2, 3])],
    ids=["some", "none", "all"],
)
def test_a_teacher_is_asked_where_the_policy_is_undecided(
    tiny_policy, tiny_config, tiny_model, keys, asked
):
    """Four prompts with two rollouts each. A prompt's answers do not depend on which are asked."""
    reader = AnswerReader(tiny_policy.tokenizer, "last_number")
    ema = load_policy(tiny_model, tiny_config.model)
    meter = StepMeter()
    inputs = RewardInputs(
        tiny_config,
        tiny_policy,
        HFSampler(tiny_policy, 64),
        reader,
        lambda: None,
        lambda: None,
        ema=ema,
        meter=meter,
    )
    counter = CountingSampler(ema, 64)
    inputs._ema_teacher._hf_sampler = counter
    prompts = prompts_of(tiny_policy, "1+2=", "2+2=", "3+3=", "4+4=")
    rollouts = SimpleNamespace(cu_groups=torch.arange(0, 9, 2, dtype=torch.int32))

    def gather(ask: str) -> tuple[list[list[int]], int, float]:
        requires = (EMATeacher(decay=0.9, final_decay=0.9, samples=40, ask=ask),)
        torch.manual_seed(3)
        meter.start()
        counter.completions = 0
        values = inputs.gather(requires, prompts, rollouts, torch.tensor(keys))
        bounds = values["cu_teacher"].tolist()
        assert values["cu_teacher"].dtype == torch.int32
        answers = [values["teacher_keys"][a:b].tolist() for a, b in itertools.pairwise(bounds)]
        assert torch.rand(1) == next_number
        return answers, counter.completions, meter.metrics()["sampled_tokens"]

    torch.manual_seed(3)
    torch.randint(2**31, (4,))
    next_number = torch.rand(1)  # the run's next random number is the same, too
    every, all_completions, all_tokens = gather("all")
    some, completions, tokens = gather("undecided")
    assert (all_completions, completions) == (160, 40 * len(asked))
    assert some == [answers if place in asked else [] for place, answers in enumerate(every)]
    assert len(set(map(tuple, every))) > 1  # else any answers would pass
    assert (tokens < all_tokens) == (len(asked) < 4)
    inputs._config = override(tiny_config, {"train.objective": "sft"})
    assert gather("undecided") == (every, all_completions, all_tokens)


def test_a_run_that_asks_less_takes_the_same_steps(tiny_config, tiny_model, tmp_path):
    """To the bits: the same advantages, and the same rollouts of the policy."""
    model = sharpen(tiny_model, tmp_path / "sharp")
    runs = {}
    for ask in ("all", "undecided"):
        changes = {
            "model.path": model,
            "run_dir": str(tmp_path / ask),
            "sampling.temperature": 0.4,  # some groups agree
            "monitor.every": 0,
            "reward": {"kind": "ema", "params": {"ask": ask}},
        }
        Trainer(override(tiny_config, changes), quiet=True).train()
        rows = read_rows(tmp_path / ask / "metrics.jsonl")
        runs[ask] = [row for row in rows if row["kind"] == "train"]
    for every, some in zip(runs["all"], runs["undecided"], strict=True):
        for name in ("loss", "grad_norm", "pass1", "unanimous", "updates"):
            assert every.get(name) == some.get(name)
        assert (some["sampled_tokens"] < every["sampled_tokens"]) == (every["unanimous"] > 0)
    assert any(row["updates"] and row["unanimous"] > 0 for row in runs["all"]), runs["all"]


def test_votes_of_peers_from_files(tiny_policy, tiny_config, tmp_path):
    """One file of `srt-fast vote --out`, one made by hand. 0 where a peer has no vote."""
    files = (str(tmp_path / "voted.jsonl"), str(tmp_path / "labels.jsonl"))
    (tmp_path / "voted.jsonl").write_text(
        '{"group": "1+2=", "majority": "3", "share": 0.75, "runner_up": 0.25}\n'
        '{"group": "9+9=", "majority": null, "share": 0.0, "runner_up": 0.0}\n'
    )
    (tmp_path / "labels.jsonl").write_text('{"prompt": "9+9=", "label": 18}\n')
    inputs = RewardInputs(tiny_config, tiny_policy, None, None, lambda: None, lambda: None)
    prompts = prompts_of(tiny_policy, "9+9=", "1+2=")
    votes = inputs.gather((PeerVotes(files=files),), prompts, None, None)
    assert votes["peer_labels"].tolist() == [[0, answer_key("18")], [answer_key("3"), 0]]
    assert votes["peer_shares"].tolist() == [[0, 1], [0.75, 0]]
    (tmp_path / "labels.jsonl").write_text('{"prompt": "9+9=", "label": 18, "share": 2}\n')
    inputs = RewardInputs(tiny_config, tiny_policy, None, None, lambda: None, lambda: None)
    with pytest.raises(ValueError, match=r"expected a share from 0 to 1 .* got 2 \(line 1\)"):
        inputs.gather((PeerVotes(files=files),), prompts, None, None)


def test_a_teacher_trails_the_policy(tiny_policy, tiny_config, tiny_model):
    model = load_policy(tiny_model, tiny_config.model)
    sampler = HFSampler(tiny_policy, 8)
    teacher = Teacher(tiny_config, model, tiny_policy, sampler, None, lambda: None)
    start = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    with torch.no_grad():
        for parameter in tiny_policy.model.parameters():
            parameter.add_(1.0)
    teacher.follow(0.9)
    for name, tensor in model.model.state_dict().items():
        # fp32 weights of size 1: a few roundings of 6e-8
        torch.testing.assert_close(tensor, start[name] + 0.1, rtol=0, atol=1e-6)


def test_the_decay_follows_a_cosine():
    decays = [decay_at(progress, 0.99, 0.9999) for progress in (0, 0.5, 1)]
    assert decays == pytest.approx([0.99, 0.99495, 0.9999])  # fp64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reward": {"kind": "frozen", "params": {"file": "nowhere.jsonl"}}},
            "nowhere.jsonl: expected a file of JSON lines",
        ),
        (
            {"reward.kind": "ema", "model.dtype": "bfloat16"},
            "model.dtype: expected float32 with reward.kind 'ema'",
        ),
    ],
)
def test_bad_settings_are_errors_before_anything_is_written(
    tiny_config, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        Trainer(override(tiny_config, changes))
    assert not (tmp_path / "run").exists()


def test_a_file_that_labels_other_prompts_is_an_error(tiny_config, tmp_path):
    prompts_file = tmp_path / "prompts.jsonl"
    labels_file = tmp_path / "labels.jsonl"
    prompts_file.write_text("".join(f'{{"problem": "{number}+1="}}\n' for number in range(40)))
    labels_file.write_text('{"prompt": "what?", "label": 3}\n')
    changes = {
        "task": {"kind": "jsonl", "name": str(prompts_file), "params": {}},
        "reward": {"kind": "frozen", "params": {"file": str(labels_file)}},
    }
    message = "got none of its 36 among the 1 of .*first prompt there: 'what\\?', in the task: '"
    with pytest.raises(ValueError, match=message):
        Trainer(override(tiny_config, changes))


def test_kinds_of_the_configuration_agree_with_the_reward_functions():
    """srt_fast.config names the kinds that need gold answers or an EMA teacher."""
    functions = {kind: make_reward_function(kind, required_params(kind)) for kind in REWARD_KINDS}
    needs_gold = {kind for kind in functions if find_requirement(functions[kind], GoldAnswers)}
    needs_ema = {kind for kind in functions if find_requirement(functions[kind], EMATeacher)}
    assert set(REWARDS_WITH_GOLD) == needs_gold
    assert set(REWARDS_WITH_TEACHER) == needs_ema
