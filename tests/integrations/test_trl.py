"""TRL's GRPOTrainer beside SRTGRPOTrainer: the same model, data and seed, and everything that TRL logs.

The optimizer is SGD: a parameter moves by lr times its gradient, so what fp32 rounding does to a gradient, below 1e-6 of
its size here, moves no parameter by 1e-5. Adam would divide a gradient of rounding errors alone by its own size.
"""

import os
import re
import runpy
import socket
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

trl = pytest.importorskip("trl")
from accelerate.state import AcceleratorState  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    PhiConfig,
    PrinterCallback,
    Qwen3NextConfig,
    TrainerCallback,
)

from srt_fast.integrations.fused_forward import pack_rows  # noqa: E402
from srt_fast.integrations.trl import SRTGRPOTrainer, majority_reward  # noqa: E402
from support.paths import ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # what transformers and TRL deprecate in themselves
PROMPTS = Dataset.from_dict({"prompt": ["1+" + "2" * n for n in (1, 5, 2, 8, 3, 7, 4, 6)]})
TIMING = ("runtime", "per_second", "step_time", "flos")
PARAMETERS, LOGGED = 1e-5, 1e-4  # absolute


def reward(completion_ids, **_):
    """0 or 1 by the sum of the tokens: of four completions all get the same in about one group of four."""
    return [float(sum(ids) % 3 == 0) for ids in completion_ids]


@pytest.fixture(scope="module")
def ragged(tiny_model, tmp_path_factory) -> str:
    """The tiny model with a sixth of its tokens as ends: its completions have 1 to 6 tokens."""
    folder = str(tmp_path_factory.mktemp("ragged"))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    model.generation_config.eos_token_id = [2, *range(100, 142)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(ragged, tmp_path):
    """Class and settings -> a trainer of the ragged model, or of `model`."""

    def trainer(kind, model=ragged, rewards=reward, options=(), **settings):
        settings = (
            dict(
                output_dir=str(tmp_path),
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                optim="sgd",
                learning_rate=0.4,
                lr_scheduler_type="constant",
                logging_steps=1,
                num_generations=4,
                per_device_train_batch_size=8,
                max_completion_length=6,
                gradient_checkpointing=False,
            )
            | settings
        )
        tokenizer = AutoTokenizer.from_pretrained(ragged)
        made = kind(
            model,
            rewards,
            trl.GRPOConfig(**settings),
            PROMPTS,
            PROMPTS,
            processing_class=tokenizer,
            **dict(options),
        )
        made.remove_callback(PrinterCallback)
        return made

    return trainer


def train_both(make, **settings):
    """Each right after it was made, which sets the seed."""
    trainers = []
    for kind in (trl.GRPOTrainer, SRTGRPOTrainer):
        trainers.append(make(kind, **settings))
        trainers[-1].train()
    return trainers


def check_same(theirs, ours, left_out=()):
    """Parameters and everything logged, of two trained trainers."""
    start = AutoModelForCausalLM.from_pretrained(theirs.model.config._name_or_path)
    moved = [
        (a - b).abs().max()
        for a, b in zip(theirs.model.parameters(), start.parameters(), strict=True)
    ]
    apart = [
        (a - b).abs().max()
        for a, b in zip(theirs.model.parameters(), ours.model.parameters(), strict=True)
    ]
    assert max(moved) > 1e-3
    assert max(apart) < PARAMETERS, max(apart)
    for expected, got in zip(theirs.state.log_history, ours.state.log_history, strict=True):
        assert expected.keys() == got.keys()
        for name in expected:
            if not any(word in name for word in (*TIMING, *left_out)):
                assert got[name] == pytest.approx(expected[name], abs=LOGGED), name


# A generation for four steps: three of them are off policy, with ratios on both sides of every bound.
OFF_POLICY = dict(steps_per_generation=4, epsilon=0.03)
LOSSES = {
    "grpo": {},
    "dapo": dict(epsilon_high=0.06),
    "bnpo": dict(delta=1.06),
    "dr_grpo": {},
    "cispo": dict(epsilon_high=1.03),
    "sapo": dict(learning_rate=0.2),
    "vespo": {},
    "luspo": dict(
        importance_sampling_level="sequence", use_bias_correction_kl=False, learning_rate=0.2
    ),
}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_trains_as_in_trl(loss_type, beta, make):
    settings = OFF_POLICY | dict(loss_type=loss_type, beta=beta, max_steps=20) | LOSSES[loss_type]
    theirs, ours = train_both(make, **settings)
    assert (ours.objective is None) == (loss_type == "vespo")
    check_same(theirs, ours)
    generations = [step for step in ours.state.log_history if "reward" in step]
    assert any(
        step["completions/min_length"] < step["completions/max_length"] for step in generations
    )
    assert any(
        0 < step["frac_reward_zero_std"] < 1 for step in generations
    )  # completions that do not train
    clipped = "cispo_clip_ratio" if loss_type == "cispo" else "clip_ratio/region_mean"
    assert loss_type in ("sapo", "vespo") or any(
        0 < step.get(clipped, 0) < 1 for step in ours.state.log_history
    )


# Settings, and whether there is an Objective for them. Six steps: two generations and more.
EAGER = {"attn_implementation": "eager"}
ACCUMULATED = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)
GSPO = OFF_POLICY | dict(loss_type="grpo", importance_sampling_level="sequence")
SETTINGS = {
    "on policy": (ACCUMULATED | dict(loss_type="grpo", beta=0.04, temperature=0.7), True),
    "a part of a generation": (ACCUMULATED | OFF_POLICY | dict(loss_type="dapo"), True),
    "minibatches twice": (
        ACCUMULATED | OFF_POLICY | dict(num_iterations=2, loss_type="bnpo"),
        True,
    ),
    "checkpointing": (OFF_POLICY | dict(gradient_checkpointing=True, beta=0.04), True),
    "gspo": (GSPO, True),
    "gspo, biased KL": (GSPO | dict(beta=0.04), False),
    "padded, truncated": (
        OFF_POLICY
        | dict(model_init_kwargs=EAGER, mask_truncated_completions=True, loss_type="dr_grpo"),
        True,
    ),
    "evaluation": (
        OFF_POLICY | dict(eval_strategy="steps", eval_steps=6, per_device_eval_batch_size=16),
        True,
    ),
    "entropy bonus": (ACCUMULATED | dict(entropy_coef=0.1), False),
    "adaptive entropy": (
        OFF_POLICY | dict(use_adaptive_entropy=True, entropy_target=5.5, entropy_coef_delta=0.1),
        False,
    ),
    "masks": (OFF_POLICY | dict(top_entropy_quantile=0.5, off_policy_mask_threshold=1e-3), False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_train_as_in_trl(name, make):
    settings, has_objective = SETTINGS[name]
    theirs, ours = train_both(make, max_steps=6, **settings)
    assert (ours.objective is not None) == has_objective
    check_same(theirs, ours)


def test_settings_that_change_during_training(make):
    """TRL reads them at every loss."""
    trainers = [
        make(kind, max_steps=6, beta=0.01, **OFF_POLICY)
        for kind in (trl.GRPOTrainer, SRTGRPOTrainer)
    ]
    for trainer in trainers:
        trainer.add_callback(Annealing(trainer))
        torch.manual_seed(0)
        trainer.train()
    check_same(*trainers)


class Annealing(TrainerCallback):
    """Another KL, another clip and in the end another loss."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **_):
        step = state.global_step + 1
        self.trainer.beta, self.trainer.epsilon_high = 0.05 * step, 0.01 * step
        self.trainer.loss_type = "bnpo" if step > 4 else "dapo"


def test_entropy_of_trained_completions(make):
    """The same parameters; what is logged of entropies and clip ratios is over fewer tokens."""
    trainers = [
        make(SRTGRPOTrainer, options=options, max_steps=6, **OFF_POLICY)
        for options in ({}, {"entropy_of": "trained"})
    ]
    for trainer in trainers:
        torch.manual_seed(0)
        trainer.train()
    check_same(*trainers, left_out=("entropy", "clip_ratio"))
    entropies = [
        [step["entropy"] for step in trainer.state.log_history if "entropy" in step]
        for trainer in trainers
    ]
    assert entropies[0] != entropies[1]


# ---- one loss, of given completions ----

COMPLETIONS = [
    [5, 6, 2],
    [7, 2],
    [8, 9, 10, 11, 2],
    [12, 13, 14, 15],
    [2],
    [16, 17, 2],
    [18] * 6,
    [19, 20, 2],
]
SAMPLER = [
    [-5.5 - 0.3 * (i % 3) + 0.4 * j for j in range(len(ids))] for i, ids in enumerate(COMPLETIONS)
]
SAMPLER[2][1] = None  # as TRL has what vLLM could not score
ROLLOUTS = {
    "prompt_ids": [[1, 5]] * 4 + [[1]] * 4,
    "completion_ids": COMPLETIONS,
    "logprobs": SAMPLER,
}


def one_loss(trainer):
    """Loss, gradients and metrics of the first micro-batch."""
    torch.manual_seed(0)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    prompts = [{"prompt": prompt} for prompt in PROMPTS["prompt"][:2] for _ in range(4)]
    inputs = trainer._generate_and_score_completions(prompts)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return (
        loss.detach(),
        [p.grad for p in trainer.model.parameters()],
        dict(trainer._metrics["train"]),
    )


def check_one_loss(ours, theirs, tolerance=1e-5):
    (our_loss, our_grads, our_metrics), (loss, grads, metrics) = one_loss(ours), one_loss(theirs)
    assert our_loss.item() == pytest.approx(loss.item(), abs=tolerance)
    largest = max(grad.abs().max().item() for grad in grads)
    for got, expected in zip(our_grads, grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * largest)
    assert our_metrics.keys() == metrics.keys()
    for name in metrics:
        assert our_metrics[name] == pytest.approx(metrics[name], abs=10 * tolerance, nan_ok=True), (
            name
        )
    return largest, metrics


def pair(make, model=None, rollouts=None, **settings):
    """Ours and TRL's."""
    options = {} if rollouts is None else {"rollout_func": lambda prompts, trainer: dict(rollouts)}
    for kind in (SRTGRPOTrainer, trl.GRPOTrainer):
        yield make(kind, *([deepcopy(model)] if model else []), options=options, **settings)


@pytest.mark.parametrize(
    "mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
)
def test_sampler_correction(mode, make):
    """Log-probs that a sampler gave, on both sides of both bounds."""
    both = list(
        pair(
            make,
            rollouts=ROLLOUTS,
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=0.7,
            vllm_importance_sampling_clip_max=1.3,
            importance_sampling_level="sequence" if mode == "token_mask" else "token",
        )
    )
    for trainer in both:
        trainer.use_vllm, trainer._last_loaded_step = (
            True,
            0,
        )  # not by GRPOConfig, which would start vLLM
    largest, metrics = check_one_loss(*both)
    [low], [high] = (metrics[f"sampling/importance_sampling_ratio/{end}"] for end in ("min", "max"))
    assert (
        largest > 0 and low < high and (low == 0 if "mask" in mode else low == pytest.approx(0.7))
    )


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_tokens_of_tools_do_not_count(loss_type, make):
    """env_mask is 0 at what an environment wrote into a completion; the model still reads it."""
    mask = [[int(i != 1) for i in range(len(ids))] for ids in COMPLETIONS]
    both = pair(make, rollouts=ROLLOUTS | {"env_mask": mask}, loss_type=loss_type, beta=0.04)
    assert check_one_loss(*both)[0] > 0


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_nothing_to_train(beta, make):
    """Every completion truncated and masked: a loss of 0 that backward can start from, as DDP needs."""
    endless = ROLLOUTS | {"completion_ids": [[5] * len(ids) for ids in COMPLETIONS]}
    both = pair(make, rollouts=endless, mask_truncated_completions=True, beta=beta)
    assert check_one_loss(*both)[0] == 0


SMALL = dict(
    vocab_size=265, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
)
ARCHITECTURES = {
    "bias": (PhiConfig(**SMALL), {}),
    "softcap": (
        Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0),
        EAGER,
    ),
    "scale": (GraniteConfig(**SMALL, logits_scaling=0.25), {}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_heads(name, make):
    """A head with a bias, a softcap (beside attention with one, which cannot pack) and a scale, at temperature 0.7."""
    config, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **options)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        if name == "bias":
            model.lm_head.bias.normal_()
    assert check_one_loss(*pair(make, model, temperature=0.7, loss_type="grpo"))[0] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(beta=0.04),
        dict(cast_lm_head_to_fp32=True),
        dict(
            cast_lm_head_to_fp32=True,
            model_init_kwargs=dict(dtype="bfloat16", tie_word_embeddings=True),
        ),
    ],
)
def test_bfloat16(settings, make):
    """Autocast, and weights in it. Both round to bfloat16 at the same places, but the shapes that they multiply differ."""
    assert (
        check_one_loss(*pair(make, bf16=True, loss_type="grpo", **settings), tolerance=2e-2)[0] > 0
    )


def test_a_second_trainer_of_one_model(make):
    """The first has left its wrappers around the model's forward."""
    trainers = []
    for kind in (trl.GRPOTrainer, SRTGRPOTrainer):
        model = make(kind, max_steps=2, bf16=True)
        model.train()
        trainers.append(make(kind, model.model, loss_type="grpo", beta=0.04))
    assert check_one_loss(*reversed(trainers), tolerance=2e-2)[0] > 0  # the first ones' rounding


def test_continuous_batching(make):
    """It samples from transformers' own attention alone (and took half a minute a generation here: completions are given)."""
    ours, theirs = pair(make, rollouts=ROLLOUTS, use_transformers_continuous_batching=True)
    assert ours.model.config._attn_implementation == "sdpa"
    assert check_one_loss(ours, theirs)[0] > 0


def test_a_model_that_cannot_pack(make):
    """Half linear attention: rows are padded, and a warning says so."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Qwen3NextConfig(
            **SMALL,
            num_key_value_heads=2,
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=0,
            router_aux_loss_coef=0.0,
            layer_types=["linear_attention", "full_attention"],
        )
    )
    with pytest.warns(
        UserWarning, match="rows are padded, which is slower: model Qwen3NextForCausalLM"
    ):
        both = list(pair(make, model, loss_type="grpo"))
    assert check_one_loss(*both)[0] > 0


@pytest.mark.parametrize(
    "entropy_of, beta, expected",
    [
        ("all", 0.0, [(True, 22), (False, 17)]),
        ("trained", 0.0, [(True, 22)]),
        ("trained", 0.04, [(False, 39), (True, 39)]),
    ],
)
def test_what_runs(entropy_of, beta, expected, make):
    """Tokens of each forward pass, and whether it has a gradient. The second group is unanimous; a KL trains it too."""
    options = {"rollout_func": lambda prompts, trainer: dict(ROLLOUTS), "entropy_of": entropy_of}
    trainer = make(
        SRTGRPOTrainer,
        rewards=lambda **_: [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0],
        options=options,
        beta=beta,
    )
    seen = []

    def record(module, args, inputs):
        seen.append((torch.is_grad_enabled(), inputs["input_ids"].numel()))

    for model in filter(None, (trainer.model, trainer.ref_model)):
        model.model.register_forward_pre_hook(record, with_kwargs=True)
    one_loss(trainer)
    assert seen == expected


# ---- what is refused ----


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("loss_type", "ppo", "loss_type: expected one of grpo, .*, got 'ppo'"),
        ("importance_sampling_level", "group", "importance_sampling_level: .* got 'group'"),
        ("use_liger_kernel", True, "use_liger_kernel: expected False: .* got True"),
        ("torch_compile", True, "torch_compile: expected False: .* got True"),
        ("neftune_noise_alpha", 5.0, "neftune_noise_alpha: expected None: .* got 5.0"),
    ],
)
def test_refused_settings(name, value, message, make):
    with pytest.raises(ValueError, match=message):
        make(SRTGRPOTrainer, **{name: value})


@pytest.mark.parametrize(
    "config, message",
    [
        (
            LlamaConfig(**SMALL, attention_dropout=0.1),
            r"attention_dropout: expected 0.0 \(disable_.*, got 0.1 in model.layers.0",
        ),
        (
            PhiConfig(**SMALL, resid_pdrop=0.1),
            "disable_dropout: .* without dropout, got 0.1 in model.layers.0",
        ),
        (
            MixtralConfig(**SMALL, num_local_experts=2, router_aux_loss_coef=0.01),
            "router_aux_loss_coef: expected 0.0: .* got 0.01",
        ),
    ],
)
def test_refused_models(config, message, make):
    with pytest.raises(ValueError, match=message):
        make(SRTGRPOTrainer, AutoModelForCausalLM.from_config(config))


def test_refused_arguments(make):
    with pytest.raises(ValueError, match="entropy_of: expected 'all' or 'trained', got 'some'"):
        make(SRTGRPOTrainer, options={"entropy_of": "some"})


@pytest.mark.parametrize(
    "settings",
    [dict(loss_type="cispo"), dict(epsilon=0.2, delta=1.1), dict(sapo_temperature_neg=0.0)],
)
def test_numbers_that_no_objective_takes(settings, make):
    """TRL's arithmetic takes them."""
    assert make(SRTGRPOTrainer, **settings).objective is None


# ---- packing ----


def test_pack_rows():
    """The example in PackedRows: a prompt padded on the left, a completion on the right."""
    ids = torch.tensor([[11, 12, 13, 0], [0, 21, 22, 23]])
    rows = pack_rows(ids, ids > 0, torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1]]).bool())
    assert rows.input_ids.tolist() == [11, 12, 13, 21, 22, 23] and rows.position_ids.tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]
    assert rows.cu_input.tolist() == [0, 3, 6] and rows.cu_seqlens.tolist() == [0, 1, 3]
    assert rows.row_index.tolist() == [1, 3, 4] and rows.targets.tolist() == [13, 22, 23]


# ---- the vote ----

BOXES = [
    r"\boxed{1/2}",
    r"so \boxed{0.5}",
    r"\boxed{3}",
    "no answer",
    r"\boxed{4}",
    r"\boxed{5}",
    "none",
    "none",
]
VOTES = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]  # a tie goes to the first


def test_majority_reward():
    logged = {}
    prompts, rewards = ["a"] * 4 + ["b"] * 4, majority_reward()
    assert (
        rewards(prompts=prompts, completions=BOXES, log_metric=logged.__setitem__, gold=["x"] * 8)
        == VOTES
    )
    assert logged == {
        "vote/share": pytest.approx((2 / 4 + 1 / 4) / 2),
        "vote/answered": pytest.approx(5 / 8),
    }
    mixed = [0, 4, 1, 5, 2, 6, 3, 7]
    assert rewards([prompts[i] for i in mixed], [BOXES[i] for i in mixed]) == [
        VOTES[i] for i in mixed
    ]


def test_majority_reward_of_conversations():
    prompts = [[{"role": "user", "content": name}] for name in "aaaabbbb"]
    said = [[{"role": "assistant", "content": text}] for text in BOXES]
    said[0].append({"role": "tool", "content": r"\boxed{3}"})
    said[1] = [{"role": "assistant", "content": [{"type": "text", "text": BOXES[1]}]}]
    said[3] = [{"role": "assistant", "content": None, "tool_calls": []}]
    assert majority_reward("boxed")(prompts, said) == VOTES


def test_majority_reward_needs_groups():
    with pytest.raises(
        ValueError, match="prompts: expected at least two completions of each, got 1 with one"
    ):
        majority_reward()(["a", "a", "b"], BOXES[:3])
    with pytest.raises(
        ValueError, match="prompts: expected strings or messages of text, got a PosixPath in one"
    ):
        majority_reward()(
            [[{"role": "user", "content": [{"type": "image", "image": Path()}]}]] * 2, BOXES[:2]
        )
    with pytest.raises(ValueError, match="rule"):
        majority_reward("box")


def in_process(rank, port, work, *arguments):
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    work(rank, *arguments)
    dist.destroy_process_group()


def vote_and_train(rank, make):
    """What each of two processes checks: a group that is split unevenly, then DDP with half of each group."""
    make(SRTGRPOTrainer, ddp_backend="gloo")  # initialises torch.distributed
    part = slice(0, 3) if rank == 0 else slice(3, 8)
    assert majority_reward()((["a"] * 4 + ["b"] * 4)[part], BOXES[part]) == VOTES[part]
    halves = dict(
        per_device_train_batch_size=2, steps_per_generation=2, max_steps=4, ddp_backend="gloo"
    )
    theirs, ours = train_both(make, rewards=majority_reward("whole"), **halves)
    check_same(theirs, ours)
    steps = [step for step in ours.state.log_history if "vote/share" in step]
    assert len(steps) == 2 and all(
        step["rewards/majority_reward/mean"] == pytest.approx(step["vote/share"]) for step in steps
    )


@pytest.mark.skipif(
    torch.get_num_threads() > 1,
    reason="forks, which OpenMP's threads do not survive: OMP_NUM_THREADS=1",
)
def test_two_processes(make):
    """Forked, as importing TRL twice takes longer than all that they do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(in_process, (port, vote_and_train, make), nprocs=2, start_method="fork")


# ---- the example ----


def test_example(ragged, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "trl_grpo.py"))["main"]
    main(
        [
            "--model",
            ragged,
            "--steps",
            "2",
            "--prompts",
            "2",
            "--held-out",
            "4",
            "--output",
            str(tmp_path),
        ]
    )
    assert re.search(
        r"held-out accuracy: [01]\.\d{3} before, [01]\.\d{3} after 2 steps", capsys.readouterr().out
    )
