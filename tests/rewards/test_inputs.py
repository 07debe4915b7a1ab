"""What designs ask for beside the vote: teachers, statistics, verdicts; resampling and the curriculum."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from srt_fast import learner
from srt_fast.config import CurriculumConfig, override
from srt_fast.files import read_rows
from srt_fast.model.loading import load_policy
from srt_fast.model.logprobs import rollout_statistics
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.base import VerificationTask, keep_all
from srt_fast.rewards.inputs import RewardInputs
from srt_fast.rewards.pipeline import concatenate
from srt_fast.rewards.self_verification import judge_rollouts, sample_verification
from srt_fast.rewards.teacher import Teacher, decay_at
from srt_fast.rewards.weighting import head_tail
from srt_fast.sampling.base import pack_completions
from srt_fast.sampling.hf import HFSampler
from srt_fast.supervised_replay import SupervisedReplay, pack_pairs
from srt_fast.train import Trainer
from srt_fast.types import Groups, Problem, Reward
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.groups.majority_vote import majority_vote


def rollouts(policy, samples: int = 3, prompts=("1+2=", "30+4=")):
    """Random completions of 1 to 6 tokens."""
    torch.manual_seed(1)
    completions = [torch.randint(10, 200, (1 + n,)) for n in range(samples * len(prompts))]
    return pack_completions(
        completions,
        [torch.zeros(len(c)) for c in completions],
        [False] * len(completions),
        [policy.tokenizer(prompt)["input_ids"] for prompt in prompts],
        samples,
    )


def logits(policy, ids: list[int]) -> torch.Tensor:
    """fp64, of every position."""
    with torch.no_grad():
        return policy.model(torch.tensor([ids]), use_cache=False).logits[0].double()


def test_statistics_are_those_of_the_full_distribution(tiny_policy):
    """One forward of each rollout alone, its whole softmax in fp64. Bar: fp32 logits of size 1, a few roundings each."""
    batch = rollouts(tiny_policy)
    entropies, certainty = rollout_statistics(tiny_policy, batch, temperature=0.7, token_budget=40)
    offsets, place = batch.cu_seqlens.tolist(), 0
    for index, (first, last) in enumerate(zip(offsets, offsets[1:], strict=False)):
        prompt = batch.prompts[index // 3]
        z = (
            logits(tiny_policy, prompt + batch.tokens[first:last].tolist())[len(prompt) - 1 : -1]
            / 0.7
        )
        p = z.softmax(1)
        torch.testing.assert_close(
            entropies[first:last].double(), -(p * p.log()).sum(1), rtol=0, atol=2e-5
        )
        uniform = torch.full_like(p, 1 / p.shape[1])
        torch.testing.assert_close(
            certainty[first:last].double(),
            (uniform * (uniform / p).log()).sum(1),
            rtol=0,
            atol=2e-5,
        )
        place += last - first
    assert place == len(batch.tokens)


def test_a_verdict_is_the_probability_of_yes(tiny_policy, tiny_config):
    config = override(tiny_config, {"task.answer_rule": "last_number"})
    batch, problems = (
        rollouts(tiny_policy),
        [Problem(id="a", prompt="1+2="), Problem(id="b", prompt="30+4=")],
    )
    scores = judge_rollouts(
        "{prompt}{completion}?", problems, batch, tiny_policy, config, lambda: None
    )
    for index in (0, 5):
        text = tiny_policy.tokenizer.decode(
            batch.tokens[batch.cu_seqlens[index] : batch.cu_seqlens[index + 1]],
            skip_special_tokens=True,
        )
        ids = tiny_policy.tokenizer(problems[index // 3].prompt + text + "?")["input_ids"]
        logprob = logits(tiny_policy, ids)[-1].log_softmax(0)
        yes, no = (
            logprob[tiny_policy.tokenizer(verdict, add_special_tokens=False)["input_ids"][0]]
            for verdict in "10"
        )
        assert scores[index].item() == pytest.approx(torch.sigmoid(yes - no).item(), abs=1e-5)
    assert (
        judge_rollouts(
            "{completion}" + "?" * 90, problems, batch, tiny_policy, config, lambda: None
        )
        .isnan()
        .all()
    )  # over the context


@pytest.mark.parametrize(("right", "chosen"), [(3, (2, 2)), (0, (0, 4)), (6, (4, 0)), (1, (1, 3))])
def test_the_second_task_asks_about_both_kinds_and_pays_for_the_pseudo_label(
    tiny_policy, tiny_config, right, chosen
):
    """A sampler that always answers 1 earns where the rollout agrees with the vote."""
    config = override(tiny_config, {"task.answer_rule": "last_number"})
    one = tiny_policy.tokenizer("1", add_special_tokens=False)["input_ids"]
    sampler = SimpleNamespace(
        sample=lambda prompts, params: pack_completions(
            [torch.tensor(one)] * len(prompts) * params.n,
            [torch.zeros(1)] * len(prompts) * params.n,
            [False] * len(prompts) * params.n,
            prompts,
            params.n,
        )
    )
    task = VerificationTask(question="{prompt}{completion}?", solutions=4, samples=2)
    agrees = torch.arange(6) < right
    problems = [Problem(id="a", prompt="1+2="), Problem(id="b", prompt="30+4=")]
    extra, reward = sample_verification(
        task,
        problems=problems,
        rollouts=rollouts(tiny_policy),
        agrees=agrees,
        policy=tiny_policy,
        sampler=sampler,
        reader=AnswerReader(tiny_policy.tokenizer, "last_number"),
        config=config,
    )
    assert (
        reward.rewards.view(4, 2).mean(1).tolist() == [1.0] * chosen[0] + [0.0] * chosen[1]
        and reward.keep.all()
    )
    assert extra.cu_groups.tolist() == [0, 2, 4, 6, 8]


class Counting(HFSampler):
    """Remembers how many prompts it was asked."""

    asked = 0

    def sample(self, prompts, params):
        self.asked += len(prompts)
        return super().sample(prompts, params)


def evidence_of(policy, config, tiny_model) -> RewardInputs:
    start = load_policy(tiny_model, config.model)
    reader = AnswerReader(policy.tokenizer, "last_number")
    made = RewardInputs(config, policy, HFSampler(policy, 64), reader, lambda: None, start=start)
    made._start_teacher._hf_sampler = Counting(start, 64)
    return made


def asked_prompts(policy, *names: str) -> SimpleNamespace:
    return SimpleNamespace(
        problems=[Problem(id=name, prompt=name) for name in names],
        token_ids=[policy.tokenizer(name)["input_ids"] for name in names],
    )


def test_the_starting_model_votes_once_on_a_prompt(tiny_policy, tiny_config, tiny_model):
    """Also after a resume."""
    evidence, design = (
        evidence_of(tiny_policy, tiny_config, tiny_model),
        make_reward_function("frozen", {"samples": 5}).requires,
    )
    first = evidence.gather(design, asked_prompts(tiny_policy, "1+2=", "2+2="), None)
    again = evidence.gather(design, asked_prompts(tiny_policy, "2+2=", "3+3=", "1+2="), None)
    assert evidence._start_teacher._hf_sampler.asked == 3
    assert again["start_labels"][[2, 0]].tolist() == first["start_labels"].tolist()
    assert again["start_shares"][[2, 0]].tolist() == first["start_shares"].tolist()
    resumed = evidence_of(tiny_policy, tiny_config, tiny_model)
    resumed.load_state_dict(evidence.state_dict())
    last = resumed.gather(design, asked_prompts(tiny_policy, "3+3="), None)
    assert (
        resumed._start_teacher._hf_sampler.asked == 0
        and last["start_labels"][0] == again["start_labels"][1]
    )


def test_labels_from_a_file(tiny_policy, tiny_config, tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text(
        '{"prompt": "1+2=", "label": 3}\n{"prompt": "2+2=", "label": "\\\\frac{8}{2}"}\n'
    )
    evidence = RewardInputs(tiny_config, tiny_policy, None, None, lambda: None)
    found = evidence.gather(
        make_reward_function("frozen", {"file": str(file)}).requires,
        asked_prompts(tiny_policy, "2+2=", "9+9=", "1+2="),
        None,
    )
    assert found["start_labels"].tolist() == [answer_key("4"), 0, answer_key("3")]
    assert found["start_shares"].tolist() == [1, 0, 1]
    file.write_text('{"prompt": "1+2=", "label": 3}\n{"prompt": "2+2="}\n')
    with pytest.raises(
        ValueError,
        match=r"expected prompt and label in every row of .*, got a row without \(line 2\)",
    ):
        RewardInputs(tiny_config, tiny_policy, None, None, lambda: None).gather(
            make_reward_function("frozen", {"file": str(file)}).requires,
            asked_prompts(tiny_policy, "1+2="),
            None,
        )


def test_a_teacher_trails_the_policy(tiny_policy, tiny_config, tiny_model):
    teacher_model = load_policy(tiny_model, tiny_config.model)
    teacher = Teacher(
        tiny_config, teacher_model, tiny_policy, HFSampler(tiny_policy, 8), None, lambda: None
    )
    before = {name: tensor.clone() for name, tensor in teacher_model.model.state_dict().items()}
    with torch.no_grad():
        for parameter in tiny_policy.model.parameters():
            parameter.add_(1.0)
    teacher.follow(0.9)
    for name, tensor in teacher_model.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + 0.1, rtol=0, atol=1e-6)
    assert [decay_at(done, 0.99, 0.9999) for done in (0, 0.5, 1)] == pytest.approx(
        [0.99, 0.99495, 0.9999]
    )


def batch_of(keys: list[list[int]]) -> Groups:
    flat, sizes = torch.tensor(sum(keys, [])), [0]
    for group in keys:
        sizes.append(sizes[-1] + len(group))
    cu_groups = torch.tensor(sizes, dtype=torch.int32)
    return Groups(
        keys=flat,
        cu_groups=cu_groups,
        cu_seqlens=torch.arange(len(flat) + 1, dtype=torch.int32),
        logprobs=torch.zeros(len(flat)),
        vote=majority_vote(flat, cu_groups),
    )


def test_hard_prompts_count_more():
    groups = batch_of([[1, 1, 1, 1], [1, 1, 2, 3], [1, 2, 3, 4]])
    reward = Reward(rewards=groups.vote.rewards, keep=keep_all(groups))
    assert head_tail(reward, groups, 0.0) is reward
    weighed = head_tail(reward, groups, 1.0).weights.view(
        3, 4
    )  # 1 - f is 0, 1/2, 3/4, their mean 5/12
    torch.testing.assert_close(weighed, torch.tensor([[0.0], [6 / 5], [9 / 5]]).expand(3, 4))
    twice = head_tail(replace(reward, weights=torch.full((12,), 2.0)), groups, 1.0).weights
    torch.testing.assert_close(twice.view(3, 4), 2 * weighed)


def test_supervised_steps_take_what_is_strong_but_rare():
    """Six rollouts a prompt: shares 2/6 to 1/6 (taken), 2/6 to 2/6 (no lead), 5/6 (not rare), no answer."""
    groups = batch_of([[7, 1, 2, 1, 3, 4], [1, 1, 2, 2, 3, 4], [1, 1, 1, 1, 1, 2], [0] * 6])
    policy = SimpleNamespace(tokenizer=lambda text: {"input_ids": [5, 6]})
    batch = replace(
        rollouts(policy, 6, ("a", "b", "c", "d")),
        cu_seqlens=torch.arange(25, dtype=torch.int32),
        tokens=torch.arange(100, 124),
        logprobs=torch.zeros(24),
    )
    lift = SupervisedReplay(CurriculumConfig(supervised_every=3))
    lift.collect(batch, groups)
    assert lift.take(2) == []
    again = SupervisedReplay(CurriculumConfig(supervised_every=3))
    again.load_state_dict(lift.state_dict())
    assert lift.take(3) == again.take(3) == [([5, 6], [101])] and lift.take(6) == []
    supervised = pack_pairs([([5, 6], [101, 102]), ([7], [103])], torch.device("cpu"))
    assert supervised.tokens.tolist() == [101, 102, 103] and supervised.prompts == [[5, 6], [7]]


def test_joined_batches_are_one_behind_the_other(tiny_policy):
    first, second = rollouts(tiny_policy, 3), rollouts(tiny_policy, 2, ("5+5=",))
    both = concatenate([first, second])
    assert both.cu_groups.tolist() == [0, 3, 6, 8] and both.cu_groups.dtype == torch.int32
    assert both.cu_seqlens.tolist() == [
        *first.cu_seqlens.tolist(),
        *(first.cu_seqlens[-1] + second.cu_seqlens[1:]).tolist(),
    ]
    assert both.tokens.tolist() == [*first.tokens.tolist(), *second.tokens.tolist()]
    assert both.prompts == first.prompts + second.prompts
    groups = concatenate([batch_of([[1, 1], [2, 0]]), batch_of([[3]])])
    assert (
        groups.cu_groups.tolist() == [0, 2, 4, 5]
        and groups.vote.majority.tolist() == [1, 2, 3]
        and groups.correct is None
    )


def test_resampling_fills_the_batch_with_what_the_design_keeps(tiny_config, tmp_path, monkeypatch):
    """A random model: now and then one of two completions has an answer. As many prompts train as a step has, and no more."""
    config = override(
        tiny_config,
        {
            "reward": {"kind": "threshold", "params": {"tau": 0.5}, "resample": 40},
            "sampling.group_size": 2,
            "train.steps": 2,
            "task.answer_rule": "last_number",
            "train.prompts_per_step": 3,
        },
    )
    kept, pack = [], learner.Learner.pack

    def spy(self, rollouts, reward):
        kept.append((reward.keep.view(-1, 2).all(1).sum().item(), len(rollouts.prompts)))
        return pack(self, rollouts, reward)

    monkeypatch.setattr(learner.Learner, "pack", spy)
    Trainer(config, quiet=True).train()
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [count for count, _ in kept] == [3, 3] and all(
        prompts > 3 and prompts % 3 == 0 for _, prompts in kept
    )
    assert [row["rounds"] * 3 for row in rows] == [prompts for _, prompts in kept]


@pytest.fixture
def opinionated(tiny_config, tiny_model, tmp_path):
    """A model with sharp opinions, so that votes agree, labels recur and steps train."""
    policy = load_policy(tiny_model, tiny_config.model)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(30)
    policy.save(tmp_path / "sharp")
    return override(
        tiny_config,
        {"model.path": str(tmp_path / "sharp"), "sampling.max_new_tokens": 2, "train.lr": 1e-3},
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"reward.kind": "frozen", "task.size": 8},
        {"reward": {"kind": "ema", "params": {"decay": 0.5, "final_decay": 0.5}}},
        {
            "reward": {
                "kind": "verify",
                "params": {"question": "{completion}?", "solutions": 2, "samples": 2},
            }
        },
        {"reward": {"kind": "threshold", "params": {"tau": 0.75}, "resample": 2}},
        {"curriculum": {"supervised_every": 2, "supervised_lead": 1.0, "head_tail": 1.0}},
    ],
    ids=["frozen", "ema", "verify", "threshold", "curriculum"],
)
def test_a_resumed_run_is_the_whole_run(opinionated, tmp_path, changes):
    """Three steps and three more, or six: the same metrics and weights, and so the same labels, teacher, verdicts and monitor."""
    told, weights = [], []
    for name, parts in (("whole", (6,)), ("parts", (3, 6))):
        for steps in parts:
            config = override(
                opinionated, {**changes, "run_dir": str(tmp_path / name), "train.steps": steps}
            )
            Trainer(
                config, quiet=True, resume=config.run_dir if steps != parts[0] else None
            ).train()
        rows = read_rows(tmp_path / name / "metrics.jsonl")
        told.append(
            [
                {k: v for k, v in row.items() if k != "time" and "second" not in k}
                for row in rows
                if row["kind"] in ("train", "monitor")
            ]
        )
        weights.append(load_policy(str(tmp_path / name / "model"), config.model).model.state_dict())
    assert told[0] == told[1] and any(
        row["kind"] == "monitor" and row["step"] == 6 for row in told[0]
    )
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    trained = [row for row in told[0] if row.get("updates") or row.get("supervised")]
    assert {row["step"] <= 3 for row in trained} == {True, False}  # on either side of the stop


@pytest.mark.parametrize(("kind", "lost"), [("ema", "teacher"), ("frozen", "labels")])
def test_what_a_resume_restores_matters(opinionated, tmp_path, monkeypatch, kind, lost):
    """The test above would notice: without it the second half differs."""
    restore = RewardInputs.load_state_dict

    def forget(self, state):
        restore(
            self,
            {**state, "labels": {}}
            if lost == "labels"
            else {**state, "teacher": self.teacher_state()},
        )

    told = []
    for name, change in (("kept", restore), ("lost", forget)):
        monkeypatch.setattr(RewardInputs, "load_state_dict", change)
        for steps in (3, 6):
            config = override(
                opinionated,
                {
                    "reward": {"kind": kind, "params": {"decay": 0.9} if kind == "ema" else {}},
                    "task.size": 8,
                    "run_dir": str(tmp_path / name),
                    "train.steps": steps,
                },
            )
            Trainer(config, quiet=True, resume=config.run_dir if steps == 6 else None).train()
        told.append(
            [
                row["pseudo_reward"]
                for row in read_rows(tmp_path / name / "metrics.jsonl")
                if row["kind"] == "train"
            ]
        )
    assert told[0][:3] == told[1][:3] and told[0][3:] != told[1][3:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reward": {"kind": "threshold", "params": {"tau": "high"}}},
            "reward.params: tau: expected a valid number.*'high'",
        ),
        (
            {"reward": {"kind": "frozen", "params": {"samples": 2.5}}},
            "reward.params: samples: expected a valid integer",
        ),
        (
            {"reward": {"kind": "frozen", "params": {"file": "nowhere.jsonl"}}},
            "nowhere.jsonl: expected a file of JSON lines",
        ),
        (
            {"reward": {"kind": "verify", "params": {"question": "{prompt}"}}},
            "expected {completion} exactly once",
        ),
        (
            {"reward.kind": "ema", "model.dtype": "bfloat16"},
            "model.dtype: expected float32 with reward.kind 'ema'",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_settings_are_errors_before_anything_is_written(
    tiny_config, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        Trainer(override(tiny_config, changes))
    assert not (tmp_path / "run").exists()


def test_a_file_that_labels_other_prompts_is_an_error(tiny_config, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(f'{{"problem": "{i}+1="}}\n' for i in range(40))
    )
    (tmp_path / "labels.jsonl").write_text('{"prompt": "what?", "label": 3}\n')
    task = {"kind": "jsonl", "name": str(tmp_path / "prompts.jsonl"), "params": {}}
    changes = {
        "task": task,
        "reward": {"kind": "frozen", "params": {"file": str(tmp_path / "labels.jsonl")}},
    }
    with pytest.raises(
        ValueError,
        match="got none of its 36 among the 1 of .*first prompt there: 'what\\?', in the task: '",
    ):
        Trainer(override(tiny_config, changes))
