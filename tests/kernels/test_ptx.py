"""Every op's kernels as they are compiled: the PTX runs in an emulator (tools/ptx).

Triton compiles what the launchers launch for sm_80 and sm_90. Results are compared with the fp64
reference within the bounds of support/bounds.py and support/loss_bounds.py, as on other devices.
Needs no GPU. SRT_PTX=all runs the whole grid: see support/emulation.py.
"""

import random

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1: the interpreter compiles nothing", allow_module_level=True)

from ptx.schedule import LOCKSTEP, REVERSE  # noqa: E402
from srt_kernels import (  # noqa: E402
    Objective,
    group_advantage,
    linear_logprob,
    linear_policy_loss,
    majority_vote,
    policy_loss,
    reference,
)
from srt_kernels.answers.canonical import answer_key  # noqa: E402
from srt_kernels.answers.extract import ANSWER_RULES, read_answer  # noqa: E402
from srt_kernels.answers.reader import AnswerReader  # noqa: E402
from srt_kernels.groups.group_advantage import KINDS  # noqa: E402
from srt_kernels.objective.objective import PRESETS  # noqa: E402
from srt_kernels.testing import random_tokens  # noqa: E402
from support.answers import FRAMES, LATEX, SYMBOLS, VOCABULARY, box, cases  # noqa: E402
from support.bounds import UNIT_ROUNDOFF, HeadBounds, gamma  # noqa: E402
from support.emulation import CHOSEN, DTYPES, Errors, grid, run_emulated  # noqa: E402
from support.loss_bounds import Sensitivity  # noqa: E402
from support.ops import LENGTHS, exact_rollouts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
U = UNIT_ROUNDOFF[torch.float32]
preset = Objective.preset

ALL_TERMS = dict(delta=3.0, kl_coef=0.1, kl_bias_correction=True, entropy_coef=0.1)
OBJECTIVES = {
    "every term": preset("srt", correction="token_mask", correction_cap=1.2, **ALL_TERMS),
    **{name: preset(name, max_length=16) for name in PRESETS},
    "every term of sequences": preset("gspo", correction="sequence_mask", **ALL_TERMS),
    "k1, token truncate": preset("dapo", kl="k1", kl_coef=0.3, correction="token_truncate"),
    "k2, sequence truncate": preset("srt", kl="k2", kl_coef=0.2, correction="sequence_truncate"),
}
# Objective, then the batch's and the op's options. V 4500 and 4099 are two blocks of the row
# kernels; 331, 4099 and 1 are odd.
LOSSES = {
    "every term, bias, softcap": (
        OBJECTIVES["every term"],
        dict(vocab_size=4500, softcap=30.0, temperature=0.7),
    ),
    "odd V, ragged chunks": (preset("dapo"), dict(vocab_size=4099, chunk_rows=5)),
    "one chunk, shared rows": (preset("cispo", clip_high=1.1), dict(shared=True)),
    "V 1": (preset("grpo", entropy_coef=0.1), dict(vocab_size=1)),
    "whole rollouts in a chunk": (
        OBJECTIVES["every term of sequences"],
        dict(vocab_size=4099, chunk_rows=12, softcap=30.0),
    ),
    "rollouts longer than a chunk": (preset("gspo", clip_high=0.3), dict(chunk_rows=4)),
    "late correction": (
        preset("srt", correction="sequence_truncate", correction_cap=1.5),
        dict(leave_out="old_logprobs", vocab_size=265),
    ),
}
# H 328 is more than a tile's stages hold, and no multiple of a tile. On sm_90 TMA copies its tiles.
LOGPROBS = {
    "bias, softcap": dict(vocab_size=300, hidden_size=328, softcap=30.0, temperature=0.7),
    "odd V, odd H": dict(vocab_size=257, hidden_size=333),
    "many rows": dict(lengths=[1, 140, 60], hidden_size=64),
    "V 1, one row": dict(lengths=[1], vocab_size=1),
    "shared rows": dict(shared=True),
}


# Sizes of groups, what shares are over, and schedules. A program takes 256 rollouts at a time. A
# group above 1024 is compared if others are small; it takes seconds.
VOTES = {
    "share over all": ([5, 0, 1, 300], "all", CHOSEN),
    "share over valid": ([40, 257], "valid", CHOSEN),
    "above 1024": ([1025, 0, 1], "all", (LOCKSTEP,)),
}


def make(dtype, lengths=LENGTHS, softcap=None, temperature=1.0, **options):
    """A batch, its head in `dtype` as leaves, and the head's settings."""
    batch = exact_rollouts(lengths, softcap=softcap, temperature=temperature, **options)
    hidden, weight = [t.to(dtype).requires_grad_() for t in (batch.hidden, batch.weight)]
    settings = dict(row_index=batch.row_index, temperature=temperature, softcap=softcap)
    return batch, hidden, weight, settings


@grid(["a factor of 0.3"])
def test_backward_scales(case, dtype, arch, record_property):
    """One rounding of the product in fp32. 20011 elements are five ragged blocks."""
    gradient = torch.randn(20011).to(DTYPES[dtype])
    factor = torch.tensor(0.3)

    def op():
        scaled = gradient.clone()
        torch.ops.srt_kernels.scale_(scaled, factor)
        return [scaled]

    [scaled], kernels = run_emulated(op, arch)
    errors = Errors(record_property, "backward", kernels, dtype, arch)
    errors.check_equal("scaled", scaled, (gradient.float() * factor).to(gradient.dtype))


@grid(LOSSES)
def test_linear_policy_loss(case, dtype, arch, record_property):
    objective, options = LOSSES[case]
    options = dict(options)
    names = {"old_logprobs", "ref_logprobs", "sampler_logprobs"} - {options.pop("leave_out", "")}
    chunk_rows = options.pop("chunk_rows", None)
    batch, hidden, weight, settings = make(DTYPES[dtype], **options)
    logprobs = {name: getattr(batch, name) for name in names}

    def op():
        leaves = [leaf.detach().clone().requires_grad_() for leaf in (hidden, weight)]
        out = linear_policy_loss(
            *leaves,
            batch.targets,
            batch.advantages,
            batch.cu_seqlens,
            objective,
            bias=batch.bias,
            chunk_rows=chunk_rows,
            all_rows=True,
            **settings,
            **logprobs,
        )
        out.loss.backward()
        return [out.loss, out.logprobs, out.entropies, *(leaf.grad for leaf in leaves)]

    (loss, *per_token, dhidden, dweight), kernels = run_emulated(op, arch)
    head = HeadBounds(hidden, weight, batch.targets, bias=batch.bias, **settings)
    truth = Sensitivity(head, batch, objective, **logprobs)
    bounds = truth.bounds(head)
    errors = Errors(record_property, "linear_policy_loss", kernels, dtype, arch)
    errors.check("loss", loss, truth.loss, bounds.loss)
    errors.check("logprobs", per_token[0], head.logprobs, bounds.logprobs)
    errors.check("entropies", per_token[1], head.entropies, bounds.entropies)
    exact = head.rounded_gradients(DTYPES[dtype], truth.grad_logprob, truth.grad_entropy)
    errors.check_gradients((dhidden, dweight), exact, bounds.gradients)


@grid(LOGPROBS)
def test_linear_logprob_without_gradient(case, dtype, arch, record_property):
    batch, hidden, weight, settings = make(DTYPES[dtype], **LOGPROBS[case])

    def op():
        with torch.no_grad():
            return list(linear_logprob(hidden, weight, batch.targets, bias=batch.bias, **settings))

    (logprobs, entropies), kernels = run_emulated(op, arch)
    head = HeadBounds(hidden, weight, batch.targets, bias=batch.bias, **settings)
    errors = Errors(record_property, "linear_logprob", kernels, dtype, arch)
    errors.check("logprobs", logprobs, head.logprobs, head.logprob_error)
    errors.check("entropies", entropies, head.entropies, head.entropy_error)


@grid(["shared rows"])
def test_gradients_of_linear_logprob(case, dtype, arch, record_property):
    batch, hidden, weight, settings = make(DTYPES[dtype], **LOGPROBS[case])
    torch.manual_seed(0)
    by_logprob, by_entropy = torch.randn(2, len(batch.targets)).double()

    def op():
        leaves = [leaf.detach().clone().requires_grad_() for leaf in (hidden, weight)]
        outs = linear_logprob(*leaves, batch.targets, bias=batch.bias, **settings)
        (by_logprob.float() @ outs[0] + by_entropy.float() @ outs[1]).backward()
        return [leaf.grad for leaf in leaves]

    gradients, kernels = run_emulated(op, arch)
    head = HeadBounds(hidden, weight, batch.targets, bias=batch.bias, **settings)
    errors = Errors(record_property, "linear_logprob", kernels, dtype, arch)
    exact = head.rounded_gradients(DTYPES[dtype], by_logprob, by_entropy)
    errors.check_gradients(gradients, exact, head.gradients(by_logprob, by_entropy))


@grid(OBJECTIVES, dtypes=["fp32"])
def test_policy_loss(case, dtype, arch, record_property):
    """Rollouts of 600 tokens and less: a program takes 512 at a time."""
    objective = OBJECTIVES[case]
    torch.manual_seed(0)
    lengths = [600, 0, 1, 30]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    total = sum(lengths)
    start = torch.randn(total) - 6
    names = ("old_logprobs", "ref_logprobs", "sampler_logprobs")
    inputs = {name: start + 0.3 * torch.randn(total) for name in names}
    inputs["entropies"] = torch.rand(total)
    advantages = torch.tensor([1.0, 2.0, -1.5, -0.2])

    def run(loss, advantages, dtype):
        values = {name: tensor.to(dtype) for name, tensor in inputs.items()}
        logprobs = start.to(dtype).requires_grad_()
        out = loss(logprobs, advantages.to(dtype), cu_seqlens, objective, **values)
        return out.loss, torch.autograd.grad(out.loss, logprobs)[0]

    (loss, gradient), kernels = run_emulated(
        lambda: list(run(policy_loss, advantages, torch.float32)), arch
    )
    truth, true_gradient = run(reference.policy_loss, advantages, torch.float64)
    # An objective takes up to 32 operations a token (support/loss_bounds.py). Sums are fp64. The
    # loss is bounded by that of terms that do not cancel.
    size, _ = run(reference.policy_loss, -advantages.abs(), torch.float64)
    errors = Errors(record_property, "policy_loss", kernels, dtype, arch)
    errors.check("loss", loss, truth, 32 * U * max(size.abs(), truth.abs()).item())
    bound = 32 * U * true_gradient.abs().max()
    errors.check_gradient("dlogprobs", gradient, true_gradient, bound)


@grid(KINDS)
def test_group_advantage(case, dtype, arch, record_property):
    """Groups above 1024, of one, of none, with nan, and of equal rewards."""
    torch.manual_seed(0)
    sizes = [5, 0, 1, 1500, 7, 129]
    rewards = torch.randint(0, 3, (sum(sizes),)).to(DTYPES[dtype]) / 2
    rewards[3:9] = torch.nan
    rewards[-136:-129] = 1.0
    cu_groups = torch.tensor([0, *sizes]).cumsum(0)
    [advantages], kernels = run_emulated(
        lambda: [group_advantage(rewards, cu_groups, kind=case)], arch
    )
    expected = reference.group_advantage(rewards.float(), cu_groups, kind=case)
    # As in groups/test_group_advantage.py: sums of fp64, then a few roundings to fp32.
    bound = gamma(8) * expected.double().abs()
    errors = Errors(record_property, "group_advantage", kernels, dtype, arch)
    errors.check("advantages", advantages, expected, bound)


@grid(VOTES)
def test_majority_vote(case, dtype, arch, record_property):
    torch.manual_seed(0)
    sizes, share_over, schedules = VOTES[case]
    keys = torch.tensor([0, 1, 2, -3, 2**63 - 1, -(2**63)])[torch.randint(0, 6, (sum(sizes),))]
    weights = torch.rand(len(keys)).to(DTYPES[dtype])
    cu_groups = torch.tensor([0, *sizes]).cumsum(0).int()
    names = ("majority", "rewards", "share", "runner_up")

    def run(vote):
        out = vote(keys, cu_groups, weights=weights, share_over=share_over)
        return [getattr(out, name) for name in names]

    results, kernels = run_emulated(lambda: run(majority_vote), arch, schedules)
    errors = Errors(record_property, "majority_vote", kernels, dtype, arch)
    for name, actual, expected in zip(names, results, run(reference.majority_vote), strict=True):
        if name in ("majority", "rewards"):
            errors.check_equal(name, actual, expected)
        else:  # a quotient of the same fp64 sums, rounded on both sides
            errors.check(name, actual, expected, 2 * U * expected)


@grid(sorted(ANSWER_RULES), dtypes=["int"])
def test_answer_keys(case, dtype, arch, record_property):
    rng = random.Random(0)
    fragments = SYMBOLS + LATEX + 3 * FRAMES
    texts = ["".join(rng.choices(fragments, k=rng.randint(0, 10))).encode() for _ in range(200)]
    texts += [text.encode() for known in cases(case) for text, _ in known.completions]
    texts += [b"", b"{" * 99, box(b"7" * 60), b"\\boxed{7} \\boxed{8", b"<answer>" * 9]
    texts = [text for text in texts if len(text) <= 40]
    tokens, cu_seqlens = random_tokens(texts, VOCABULARY, rng)
    reader = AnswerReader(VOCABULARY, case)
    [keys], kernels = run_emulated(lambda: [reader.keys(tokens, cu_seqlens)], arch, (REVERSE,))
    expected = torch.tensor([answer_key(read_answer(text, case)) for text in texts])
    errors = Errors(record_property, "AnswerReader.keys", kernels, dtype, arch)
    errors.check_equal("keys", keys, expected)
