"""Episodes in runs: conversations, samples, gold, resume, and the verification task as it was."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from srt_fast.cli import main
from srt_fast.config import Config, override
from srt_fast.files import read_rows
from srt_fast.learner import Learner
from srt_fast.model.policy import longest_prompt
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.episodes import Episodes
from srt_fast.rewards.joining import concatenate, join_rounds
from srt_fast.rewards.pipeline import RewardPipeline
from srt_fast.rewards.turns import Turn, is_about_task, turns_of
from srt_fast.run import folder as run_folder
from srt_fast.run.interrupts import RunInterrupted
from srt_fast.run.records import read_record
from srt_fast.run.report import write_report
from srt_fast.sampling.base import Completion, SamplingParams, pack_completions
from srt_fast.sampling.hf import HFSampler
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.train import Trainer
from srt_fast.types import Batch, Groups, PlayedTurn, Problem, Prompts, Reward
from srt_kernels import AnswerReader, majority_vote
from srt_kernels.answers.canonical import answer_key
from srt_kernels.core.segments import segment_ids
from support.models import speak_digits
from support.rollouts import EPISODES
from support.tasks import write_jsonl

SHORT_QUESTIONS = {
    "verify": {"question": "{prompt}{completion}?", "solutions": 6, "samples": 2},
    "self_correct": {"question": "!"},
    "coverl": {"question": "{prompt}{completion}?", "again": "!"},
    "critique": {"question": "?", "revise": "!", "limit": 8},
    "select": {"question": "{prompt}{completion}#", "samples": 2},
    "self_rewarding_correction": {"question": "{prompt}{completion}?", "revise": "!"},
    "propose": {"question": "{prompt}+", "samples": 3},
}
"""Questions that leave room in the tiny model's context of 64 tokens."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Runs draw no report: that takes five times their other work. One test below draws its own."""
    monkeypatch.setattr(run_folder, "write_report", lambda _: None)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_weights(actual, expected) -> None:
    for name, tensor in expected.items():
        assert actual[name].equal(tensor), name


def episode_config(config: Config, kind: str, **changes) -> Config:
    reward = {"kind": kind, "params": SHORT_QUESTIONS[kind]}
    return override(config, {"reward": reward, "task.answer_rule": "last_number"} | changes)


@pytest.fixture
def digits_config(tiny_config, tiny_model, tmp_path) -> Config:
    """Answers recur, verdicts are 0 and 1, and steps train."""
    changes = {
        "model.path": speak_digits(tiny_model, tmp_path / "digits"),
        "sampling.max_new_tokens": 1,
    }
    return override(tiny_config, changes)


# ---- conversations ----


def fixed_turn(policy, config, texts: list[str], samples: int) -> tuple[Episodes, PlayedTurn]:
    """A first turn of these completions, for the prompts 1+2= and 30+4=."""
    problems = [Problem(id=prompt, prompt=prompt) for prompt in ("1+2=", "30+4=")]
    ids = [tokenize_prompt(problem, config.task, policy.tokenizer) for problem in problems]
    completions = []
    for text in texts:
        tokens = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([*tokens, policy.tokenizer.eos_token_id])
        completions.append(Completion(tokens, torch.zeros(len(tokens)), truncated=False))
    rollouts = pack_completions(completions, ids, samples=samples)
    reader = AnswerReader(policy.tokenizer, "last_number")
    keys = reader.keys(rollouts.tokens, rollouts.cu_seqlens)
    groups = Groups(
        keys=keys,
        cu_groups=rollouts.cu_groups,
        cu_seqlens=rollouts.cu_seqlens,
        logprobs=rollouts.logprobs,
        vote=majority_vote(keys, rollouts.cu_groups),
    )
    episodes = Episodes(config, policy, HFSampler(policy, 64), reader)
    prompts = Prompts(problems=problems, token_ids=ids, dropped=0, position={})
    return episodes, episodes.begin(prompts, rollouts, groups)


def texts_of(policy, played: PlayedTurn) -> list[str]:
    return [
        policy.tokenizer.decode(conversation.token_ids, skip_special_tokens=True)
        for conversation in played.conversations
    ]


def test_a_conversation_without_a_chat_template_is_text(tiny_policy, tiny_config):
    """The question goes on behind the completion, token for token. With {completion} it is a prompt
    of its own, in the task's template. What a completion contains is not replaced.
    """
    config = override(tiny_config, {"task.template": "{prompt}."})
    episodes, first = fixed_turn(tiny_policy, config, ["3", "{prompt}4", "34", "5"], samples=2)
    params = SamplingParams(n=2, max_tokens=3)
    second = episodes.ask(Turn(question="!", samples=2), first, None, params)
    start = first.conversations[0].token_ids
    said = first.rollouts.tokens[:1].tolist()  # without its end of sequence
    asked = tiny_policy.tokenizer("!", add_special_tokens=False)["input_ids"]
    assert second.conversations[0].token_ids == start + said + asked
    assert texts_of(tiny_policy, second)[1] == "1+2=.{prompt}4!"
    assert second.parents == [0, 0, 1, 1, 2, 2, 3, 3]
    assert second.prompts == [0] * 4 + [1] * 4
    assert second.groups.cu_groups.tolist() == [0, 4, 8]
    assert second.rollouts.cu_groups.tolist() == [0, 2, 4, 6, 8]

    third = episodes.ask(
        Turn(question="{prompt}|{completion}|{answer}?", group="parent"),
        first,
        None,
        SamplingParams(n=1, max_tokens=3),
    )
    assert texts_of(tiny_policy, third)[1:3] == ["1+2=|{prompt}4|4?.", "30+4=|34|34?."]
    assert third.groups.cu_groups.tolist() == [0, 1, 2, 3, 4]


def test_a_conversation_of_a_chat_model_has_roles(tiny_policy, tiny_config):
    """system, user, assistant, user, assistant, user; a question with {completion} stands alone."""
    tiny_policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    changes = {"task.chat": True, "task.system": "s", "task.template": "{prompt}."}
    config = override(tiny_config, changes)
    episodes, first = fixed_turn(tiny_policy, config, ["3", "34"], samples=1)
    params = SamplingParams(n=1, temperature=0.0, max_tokens=1)
    second = episodes.ask(Turn(question="\nsure?\n"), first, None, params)
    assert texts_of(tiny_policy, second)[0] == "s:s u:1+2=. a:3 u:sure? a:"
    third = episodes.ask(Turn(question="why?"), second, None, params)
    said = tiny_policy.tokenizer.decode(second.rollouts.tokens[:1], skip_special_tokens=True)
    expected = f"s:s u:1+2=. a:3 u:sure? a:{said} u:why? a:"
    assert texts_of(tiny_policy, third)[0] == expected
    alone = episodes.ask(Turn(question="{prompt}{completion}?"), second, None, params)
    assert texts_of(tiny_policy, alone)[0] == f"s:s u:1+2={said}?. a:"


def test_one_question_shows_a_solution_of_each_answer(tiny_policy, tiny_config):
    """Prompts with one answer are not asked. Answers of one value are one answer."""
    texts = ["3", "03", "4", "34", "34", "x"]
    episodes, first = fixed_turn(tiny_policy, tiny_config, texts, samples=3)
    turn = Turn(question="{completion}", ask="one_per_answer", samples=2)
    second = episodes.ask(turn, first, None, SamplingParams(n=2, max_tokens=1))
    assert texts_of(tiny_policy, second) == ["Solution 1:\n3\n\nSolution 2:\n4"]
    assert second.parents == [0, 0]


def test_questions_that_are_too_long_are_left_out_and_counted(tiny_policy, tiny_config):
    long = "7" * (longest_prompt(tiny_policy, tiny_config.sampling) - 8)
    episodes, first = fixed_turn(tiny_policy, tiny_config, ["3", long], samples=1)
    params = SamplingParams(n=1, max_tokens=3)
    second = episodes.ask(Turn(question="again"), first, None, params)
    assert (second.parents, second.too_long) == ([0], 1)
    none = episodes.ask(Turn(question="!" * 60), first, None, params)
    assert (none.parents, none.too_long, len(none.rollouts.tokens)) == ([], 2, 0)
    assert none.groups.cu_groups.tolist() == [0]
    assert episodes.ask(Turn(question="!"), none, None, params).parents == []  # goes on with none


class Says:
    """A sampler that says these texts in turn."""

    def __init__(self, policy, texts: list[str], truncated: tuple[int, ...] = ()) -> None:
        self.policy, self.texts, self.truncated = policy, texts, truncated

    def sample(self, prompts, params):
        completions = []
        for place, text in enumerate(self.texts):
            tokens = self.policy.tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens = torch.tensor([*tokens, self.policy.tokenizer.eos_token_id])
            zeros = torch.zeros(len(tokens))
            completions.append(Completion(tokens, zeros, truncated=place in self.truncated))
        return pack_completions(completions, prompts, samples=params.n)


def test_a_problem_is_answered_once_and_if_it_is_new(tiny_policy, tiny_config):
    """Left out: the task's own prompt, a repetition, an empty and a truncated problem."""
    _, first = fixed_turn(tiny_policy, tiny_config, ["3", "4", "34", "5"], samples=2)
    texts = ["7+7=", "1+2=", "7+7= ", "", "8+8", "30+4"]  # 30+4 is not the prompt 30+4=
    reader = AnswerReader(tiny_policy.tokenizer, "last_number")
    says = Says(tiny_policy, texts, truncated=(4,))
    episodes = Episodes(tiny_config, tiny_policy, says, reader)
    propose, answer = turns_of(make_reward_function("propose", {"question": "{prompt}more"}))[1:]
    problems = episodes.ask(propose, first, None, SamplingParams(n=3, max_tokens=9))
    assert texts_of(tiny_policy, problems) == ["1+2=more", "30+4=more"]
    assert problems.parents == [0, 0, 0, 2, 2, 2]
    assert [key != 0 for key in problems.groups.keys.tolist()] == [1, 0, 1, 0, 0, 1]

    says.texts, says.truncated = ["14", "14", "34", "3"], ()
    answers = episodes.ask(answer, problems, None, SamplingParams(n=2, max_tokens=9))
    assert texts_of(tiny_policy, answers) == ["7+7=", "30+4"]
    assert answers.parents == [0, 0, 5, 5]
    assert answers.groups.vote.share.tolist() == [1.0, 0.5]
    episode = [first.groups, problems.groups, answers.groups]
    rewards = make_reward_function("propose", {})(episode)
    assert rewards[1].rewards.tolist() == [0, 0, 0, 0, 0, 1]
    assert rewards[2].keep.tolist() == [False, False, True, True]


def test_rounds_of_sampling_join(tiny_policy, tiny_config):
    """Parents and prompts of the second round are those of the joined step."""
    batches = []
    for texts in (["3", "4", "34", "5"], ["1", "1", "2", "2"]):
        episodes, first = fixed_turn(tiny_policy, tiny_config, texts, samples=2)
        params = SamplingParams(n=1, max_tokens=2)
        second = episodes.ask(Turn(question="!"), first, None, params)
        third = episodes.ask(Turn(question="?", group="parent"), second, None, params)
        rewards = [
            Reward(rewards=torch.zeros(4), keep=torch.tensor([True, True, False, False]))
            for _ in range(3)
        ]
        prompts = Prompts(
            problems=[c.problem for c in first.conversations],
            token_ids=[c.token_ids for c in first.conversations],
            dropped=0,
            position={},
        )
        batches.append(
            Batch(
                prompts=prompts,
                rollouts=first.rollouts,
                groups=first.groups,
                reward=rewards[0],
                rounds=1,
                later=[second, third],
                later_rewards=rewards[1:],
            )
        )
    joined = join_rounds(*batches, prompts_per_step=1)
    for number, turn in enumerate(joined.later):
        assert turn.parents == turn.groups.parent.tolist() == list(range(8))
        assert turn.prompts == [0, 0, 1, 1, 2, 2, 3, 3]
        kept = joined.later_rewards[number].keep.tolist()
        assert kept == [True] * 2 + [False] * 6  # the second round's prompt is beyond the first
        for place, group in enumerate(turn.rollouts.layout.groups):
            before = batches[place // 4].later[number]
            conversation = before.conversations[before.rollouts.layout.groups[place % 4]]
            assert turn.conversations[group] == conversation


# ---- the verification task as it was before there were turns ----


def choose_solutions(agrees, solutions):
    order = torch.randperm(len(agrees))
    agrees_in_order = agrees.cpu()[order]
    agreeing = order[agrees_in_order].tolist()
    disagreeing = order[~agrees_in_order].tolist()
    quota = max(solutions // 2, solutions - len(disagreeing))
    return agreeing[:quota] + disagreeing[: solutions - min(quota, len(agreeing))]


def verification_as_it_was(pipeline, batch, config, policy, sampler, reader):
    """The rollouts and rewards that trained, as of commit 3969e06: sample_verification and
    RewardPipeline.add_verification.
    """
    params = config.reward.params
    rollouts = batch.rollouts
    agrees = batch.reward.rewards > 0
    indices = choose_solutions(agrees, params["solutions"])
    offsets, group = rollouts.layout.offsets, rollouts.layout.groups
    prompts = []
    for index in indices:
        tokens = rollouts.tokens[offsets[index] : offsets[index + 1]]
        text = str(policy.tokenizer.decode(tokens, skip_special_tokens=True))
        problem = batch.prompts.problems[group[index]]
        wording = params["question"].replace("{prompt}", problem.prompt, 1)
        wording = wording.replace("{completion}", text, 1)
        asked = Problem(id=problem.id, prompt=wording)
        prompts.append(tokenize_prompt(asked, config.task, policy.tokenizer))
    limit = longest_prompt(policy, config.sampling)
    fitting = [place for place, ids in enumerate(prompts) if len(ids) <= limit]
    sampling = SamplingParams.of_training(config.sampling, n=params["samples"])
    verdicts = sampler.sample([prompts[place] for place in fitting], sampling)
    fitting_agrees = agrees[[indices[place] for place in fitting]]
    labels = torch.where(fitting_agrees, answer_key("1"), answer_key("0"))
    keys = reader.keys(verdicts.tokens, verdicts.cu_seqlens)
    rewards = (keys == labels[segment_ids(verdicts.cu_groups, len(keys))]).float()
    reward = Reward(rewards=rewards, keep=torch.ones_like(rewards, dtype=torch.bool))
    if batch.reward.weights is not None:
        reward = Reward(**vars(reward) | {"weights": torch.ones_like(rewards)})
    return concatenate([rollouts, verdicts]), concatenate([batch.reward, reward])


@pytest.mark.parametrize("changes", [{}, {"curriculum.head_tail": 1.0}], ids=["plain", "weights"])
def test_verification_is_what_it_was(digits_config, tmp_path, monkeypatch, changes):
    """Rollouts, rewards, advantages and weights of a seeded run, bit for bit."""
    trained = {"now": [], "before": []}
    final = {}
    for name in ("now", "before"):
        with monkeypatch.context() as patch:
            config = episode_config(
                digits_config, "verify", run_dir=str(tmp_path / name), **changes
            )
            trainer = Trainer(config, quiet=True)
            if name == "before":
                patch.setattr(RewardPipeline, "ask", lambda *_: [])
                patch.setattr(
                    RewardPipeline,
                    "_rewards",
                    lambda _, episode: [
                        Reward(
                            rewards=episode[0].vote.rewards,
                            keep=torch.ones_like(episode[0].keys, dtype=torch.bool),
                        )
                    ],
                )
                patch.setattr(
                    RewardPipeline,
                    "join_turns",
                    lambda pipeline, batch, parts=trainer: verification_as_it_was(
                        pipeline,
                        batch,
                        parts.config,
                        parts.parts.policy,
                        parts.parts.sampler,
                        parts.parts.reader,
                    ),
                )
            pack = Learner.pack

            def recording_pack(self, rollouts, reward, pack=pack, seen=trained[name]):
                advantages = self._advantages(rollouts, reward)
                seen.append((rollouts, reward.rewards, reward.keep, advantages))
                return pack(self, rollouts, reward)

            patch.setattr(Learner, "pack", recording_pack)
            trainer.train()
        final[name] = weights(tmp_path / name)
    assert len(trained["now"]) == len(trained["before"]) == 4
    for now, before in zip(trained["now"], trained["before"], strict=True):
        for field in ("tokens", "logprobs", "cu_seqlens", "cu_groups", "truncated"):
            assert getattr(now[0], field).equal(getattr(before[0], field))
        assert now[0].prompts == before[0].prompts
        assert all(mine.equal(theirs) for mine, theirs in zip(now[1:], before[1:], strict=True))
    assert_same_weights(final["now"], final["before"])
    assert any(advantages[24:].any() for *_, advantages in trained["now"])  # verdicts train


# ---- runs ----


@pytest.mark.parametrize("kind", EPISODES)
def test_gold_changes_no_step_of_an_episode(digits_config, tiny_model, tmp_path, kind):
    """Right and wrong gold give the same weights, and none as well. Scores of turns need gold."""
    if kind == "propose":  # a truncated problem is none
        model = speak_digits(tiny_model, tmp_path / "ends", ends=True)
        changes = {"model.path": model, "sampling.max_new_tokens": 3}
        digits_config = override(digits_config, changes)
    final = {}
    scores = {}
    names = ("right", "wrong", "none") if kind == "coverl" else ("right", "wrong")
    for name in names:
        answers = {"right": str, "wrong": lambda number: "7"}.get(name)
        rows = [{"problem": f"{number}+0="} for number in range(30)]
        if answers:
            rows = [row | {"answer": answers(number)} for number, row in enumerate(rows)]
        task = {
            "kind": "jsonl",
            "name": write_jsonl(tmp_path / f"{name}.jsonl", rows),
            "params": {},
            "gold_column": "answer" if answers else None,
        }
        folder = tmp_path / name
        config = override(digits_config, {"task": task, "train.steps": 2, "monitor.every": 0})
        config = episode_config(
            config, kind, run_dir=str(folder), **{"curriculum.supervised_every": 1}
        )
        Trainer(config, quiet=True).train()
        final[name] = weights(folder)
        rows = read_rows(folder / "metrics.jsonl")
        scores[name] = [row for row in rows if row["kind"] == "eval"][-1]
        steps = [row for row in rows if row["kind"] == "train"]
        assert all(row["turn2_asked"] > 0 for row in steps)
        if kind == "propose":
            assert any(row["turn3_asked"] > 0 for row in steps)
    for name in names[1:]:
        assert_same_weights(final[name], final["right"])
    turns = turns_of(make_reward_function(kind, {}))
    replies = [turn.reply for n, turn in enumerate(turns) if n and is_about_task(turns, n)]
    of_turns = {"verdict_accuracy", "gv_gap", "maj_verdict"} if "verdict" in replies else set()
    if "answer" in replies:
        of_turns |= {"acc@first", "acc@final", "wrong_to_right", "right_to_wrong"}
    assert of_turns <= set(scores["right"])
    assert not of_turns & set(scores.get("none", ()))


@pytest.mark.parametrize("kind", ["coverl", "self_rewarding_correction"])
def test_an_interrupted_episode_is_resumed_bit_for_bit(digits_config, tmp_path, monkeypatch, kind):
    """A signal arrives while the last turn of the second step is sampled."""
    changes = {"train.steps": 3, "curriculum.supervised_every": 2}
    whole = episode_config(digits_config, kind, run_dir=str(tmp_path / "whole"), **changes)
    Trainer(whole, quiet=True).train()

    config = override(whole, {"run_dir": str(tmp_path / "parts")})
    trainer = Trainer(config, quiet=True)
    sample = HFSampler.sample
    turns = len(turns_of(trainer.reward_function))
    calls = []

    def sample_until_the_signal(self, prompts, params, *, seeds=None):
        if trainer.step == 1 and seeds is None:
            calls.append(len(prompts))
            if len(calls) == turns:
                raise RunInterrupted(signal.SIGTERM)
        return sample(self, prompts, params, seeds=seeds)

    with monkeypatch.context() as patch, pytest.raises(RunInterrupted):
        patch.setattr(HFSampler, "sample", sample_until_the_signal)
        trainer.train()
    assert len(calls) == turns
    Trainer(config, quiet=True, resume=tmp_path / "parts").train()
    assert_same_weights(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    rows = {}
    for name in ("parts", "whole"):
        rows[name] = [
            {key: row[key] for key in row if key != "time" and "second" not in key}
            for row in read_rows(tmp_path / name / "metrics.jsonl")
            if row["kind"] in ("train", "eval")
        ]
    assert rows["parts"] == rows["whole"]
    assert any(row.get("updates") for row in rows["whole"])


def test_samples_and_report_show_the_conversation(digits_config, tmp_path):
    config = episode_config(digits_config, "critique", **{"train.steps": 2, "log.sample_every": 1})
    Trainer(config, quiet=True).train()
    folder = tmp_path / "run"
    record = read_record(folder)
    assert record.damage == []
    assert all("turns" in row for row in record.samples)
    whole = [row for row in record.samples if len(row["turns"]) == 2]
    assert whole
    assert [turn["question"] for turn in whole[0]["turns"]] == ["?", "!"]
    html, _ = write_report(folder)
    page = html.read_text()
    assert 'class="turn"' in page and "reward " in page


def test_turn_weights(digits_config, tmp_path):
    """A turn of weight 0 trains as if it were masked. The settings are checked."""
    with pytest.raises(ValueError, match="turn_weights: expected 2 numbers, one a turn, with"):
        Trainer(episode_config(digits_config, "self_correct", **{"train.turn_weights": [1.0]}))
    with pytest.raises(ValueError, match="turn_weights: expected none with reward.kind 'majority'"):
        Trainer(override(digits_config, {"train.turn_weights": [1.0]}))
    with pytest.raises(ValueError, match="expected a policy gradient .* 2 turns, got 'dpo'"):
        Trainer(episode_config(digits_config, "self_correct", **{"train.objective": "dpo"}))
    with pytest.raises(ValueError, match="'accepted' needs a reward function .* got .*'critique'"):
        accepted = {"curriculum.supervised_every": 1, "curriculum.supervised_pick": "accepted"}
        Trainer(episode_config(digits_config, "critique", **accepted))
    final = {}
    for name, turn_weights in (("none", []), ("ones", [1.0, 1.0]), ("second", [0.0, 1.0])):
        config = episode_config(
            digits_config,
            "self_correct",
            run_dir=str(tmp_path / name),
            **{"train.turn_weights": turn_weights, "train.steps": 1},
        )
        Trainer(config, quiet=True).train()
        final[name] = weights(tmp_path / name)
    assert_same_weights(final["ones"], final["none"])
    assert any(not final["second"][name].equal(final["none"][name]) for name in final["none"])


def test_a_reward_function_that_forgets_a_turn_is_an_error(digits_config, monkeypatch):
    function = make_reward_function("self_correct", {})
    call = type(function).__call__
    monkeypatch.setattr(type(function), "__call__", lambda self, episode: call(self, episode)[:1])
    config = episode_config(digits_config, "self_correct")
    with pytest.raises(
        ValueError, match=r"expected a Reward for each turn, of \[24, 24\] rollouts"
    ):
        Trainer(config, quiet=True).train()


def test_eval_asks_the_turns_of_a_run(digits_config, tmp_path, capsys):
    """A run of single completions is evaluated without its reward function, as ever."""
    folder = tmp_path / "run"
    config = episode_config(digits_config, "coverl", **{"train.steps": 1})
    Trainer(config, quiet=True).train()
    rows = read_rows(folder / "metrics.jsonl")
    scores = [row for row in rows if row["kind"] == "eval"][-1]
    capsys.readouterr()
    assert main(["eval", str(folder)]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("pass1", "verdict_accuracy", "acc@first", "acc@final"):
        assert printed[name] == scores[name]
    assert main(["eval", str(folder), "--reward.kind", "majority", "--reward.params"]) == 0
    assert "acc@final" not in json.loads(capsys.readouterr().out.splitlines()[-1])
