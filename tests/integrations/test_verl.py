"""verl's own losses, estimators and fused log-prob, called as its trainer calls them, beside ours from its registries."""

import inspect
import runpy
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from srt_kernels import Objective, policy_loss
from srt_kernels.testing import assert_close, packed_rollouts

core_algos = pytest.importorskip(
    "verl.trainer.ppo.core_algos", reason="verl is not installed: make test brings it"
)
from verl.models.transformers import dense_common  # noqa: E402
from verl.utils.experimental.torch_functional import FusedLinearForPPO  # noqa: E402
from verl.workers.config import ActorConfig, PolicyLossConfig  # noqa: E402

from srt_fast.integrations import verl as ours  # noqa: E402
from support.paths import ROOT

EXAMPLE = ROOT / "examples" / "verl_loss.py"
LENGTHS = [3, 1, 5, 0, 7, 1, 9, 2]
TOLERANCE = 1e-7  # fp64, and the 1e-8 that verl adds to counts
MASK = torch.arange(9) < torch.tensor(LENGTHS)[:, None]  # [B, T]
GLOBAL = dict(dp_size=2, batch_num_tokens=70, global_batch_size=19, loss_scale_factor=16)


def config(**settings):
    return ActorConfig(strategy="fsdp", rollout_n=4, use_dynamic_bsz=True, **settings)


def random_batch(seed=0, mask=MASK):
    """verl's keyword arguments: ratios on both sides of every bound, positive, negative and zero advantages, junk as padding."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(*mask.shape, generator=generator, dtype=torch.float64)

    log_prob = -normal().abs()
    old = log_prob + 0.5 * normal()
    advantages = normal() * (torch.arange(mask.numel()).view(mask.shape) % 5 > 0)
    junk = 3.0 * normal()
    padded = [torch.where(mask, tensor, junk) for tensor in (old, log_prob, advantages)]
    return dict(
        zip(("old_log_prob", "log_prob", "advantages"), padded, strict=True), response_mask=mask
    )


def run(name, batch, **settings):
    log_prob = batch["log_prob"].clone().requires_grad_()
    arguments = batch | {"log_prob": log_prob} | settings
    loss, metrics = core_algos.get_policy_loss_fn(name)(**arguments)
    return loss.detach(), torch.autograd.grad(loss, log_prob)[0], metrics


def check(mode, batch, **settings):
    theirs, mine = run(mode, batch, **settings), run(f"srt_{mode}", batch, **settings)
    for name, actual, expected in zip(("loss", "gradient"), mine, theirs, strict=False):
        assert_close(name, actual, expected, atol=TOLERANCE)
    assert mine[2] == pytest.approx(theirs[2], abs=1e-6)  # verl's fractions are fp32
    return theirs[2]


SETTINGS = {
    "vanilla": dict(clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=1.5),
    "gspo": dict(clip_ratio_low=0.05, clip_ratio_high=0.01),
    "sapo": dict(tau_pos=2.0, tau_neg=3.0),
    "cispo": dict(clip_ratio_low=0.2, clip_ratio_high=0.1),
    "gpg": {},
    "dro": dict(policy_loss=PolicyLossConfig(dro_beta=0.3)),
}


@pytest.mark.parametrize("aggregation", ours.AGGREGATIONS)
@pytest.mark.parametrize("mode", ours.MODES)
def test_policy_loss(mode, aggregation):
    """Normalised by the batch itself and by verl's global batch, with and without rollout weights of each token.

    The weights as verl's rollout_is_threshold "0.5_5.0" (IcePop) leaves them: 0 below 0.5, in two tokens of seven.
    """
    weights = (
        torch.linspace(0.1, 2.0, 7, dtype=torch.float64).repeat(11)[: MASK.numel()].view(MASK.shape)
    )
    weights = torch.where(weights < 0.5, 0.0, weights)
    for seed, batch_info in enumerate(({}, GLOBAL)):
        settings = dict(
            loss_agg_mode=aggregation, config=config(**SETTINGS[mode], global_batch_info=batch_info)
        )
        metrics = check(mode, random_batch(seed), **settings)
        if mode != "dro":
            check(mode, random_batch(seed), **settings, rollout_is_weights=weights)
    if mode in ("vanilla", "gspo", "cispo"):
        assert metrics["actor/pg_clipfrac"] > 0
    if mode == "vanilla":
        assert metrics["actor/pg_clipfrac_lower"] > 0


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "cispo"])
def test_a_lower_bound_that_never_binds(mode):
    """1 - clip_ratio_low below 0."""
    check(mode, random_batch(), config=config(clip_ratio_low=1.5))


def test_clip_ratio_is_the_bound_where_no_other_is_given():
    settings = config(clip_ratio=0.1, clip_ratio_low=None, clip_ratio_high=None)
    for mode in ("vanilla", "gspo", "cispo"):
        check(mode, random_batch(), config=settings)


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "cispo"])
def test_on_policy(mode):
    """The ratio is 1 to the bit, and the gradient that of verl."""
    batch = random_batch()
    check(mode, batch | {"old_log_prob": batch["log_prob"]}, config=config())


def test_as_many_tokens_as_completions():
    """N advantages are not one per completion."""
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 0]])
    check("vanilla", random_batch(mask=mask.bool()) | {"response_mask": mask}, config=config())
    check(
        "gspo", random_batch(mask=mask.bool()), config=config(), loss_agg_mode="seq-mean-token-mean"
    )


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "sapo", "cispo", "dro"])
@pytest.mark.parametrize("nats", [-30.0, 30.0])
def test_a_token_that_is_far_off(mode, nats):
    """One log-ratio beyond what verl clamps; of a positive advantage, as the bound of gspo's gradient differs elsewhere."""
    batch = random_batch()
    batch["advantages"] = batch["advantages"].abs()
    batch["old_log_prob"][4, 2] = batch["log_prob"][4, 2] - nats
    check(mode, batch, config=config(**SETTINGS[mode]))


def test_no_token_is_no_loss():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for mode in ours.MODES:
        loss, gradient, metrics = run(
            f"srt_{mode}", random_batch(mask=mask), config=config(**SETTINGS[mode])
        )
        assert loss == 0 and gradient.count_nonzero() == 0 and set(metrics.values()) <= {0.0}


def test_gspo_is_the_preset_where_a_completion_has_one_advantage():
    batch = random_batch()
    advantages = batch["advantages"][:, 0]
    batch["advantages"] = advantages[:, None].expand(MASK.shape)
    low, high = 0.05, 0.01
    settings = dict(
        loss_agg_mode="seq-mean-token-mean", config=config(clip_ratio_low=low, clip_ratio_high=high)
    )
    loss, gradient, _ = run("srt_gspo", batch, **settings)
    logprobs = batch["log_prob"][MASK].requires_grad_()
    out = policy_loss(
        logprobs,
        advantages,
        torch.tensor([0, *LENGTHS]).cumsum(0),
        Objective.preset("gspo", clip_low=low, clip_high=high),
        old_logprobs=batch["old_log_prob"][MASK],
        normalizer=7,
    )
    assert_close("loss", loss, out.loss.detach(), atol=1e-12)
    assert_close("gradient", gradient[MASK], torch.autograd.grad(out.loss, logprobs)[0], atol=1e-12)


def test_every_mode_of_verl_is_covered_or_named():
    uncovered = {"dppo_tv", "dppo_kl", "clip_cov", "kl_cov", "geo_mean", "bypass_mode"}
    theirs = {name for name in core_algos.POLICY_LOSS_REGISTRY if not name.startswith("srt_")}
    assert theirs == uncovered | set(ours.MODES)
    for mode in uncovered:
        with pytest.raises(ValueError, match=f"loss_mode: expected one of vanilla.*got '{mode}'"):
            ours.objective_of(mode, "token-mean", config())
        with pytest.raises(ValueError, match=f"srt_{mode}"):
            core_algos.get_policy_loss_fn(f"srt_{mode}")


@pytest.mark.parametrize(
    "mode, settings, message",
    [
        (
            "vanilla",
            dict(config=config(clip_ratio_c=1.1)),
            r"clip_ratio_c: expected more than 1 \+ clip_ratio_high = 1.2.*got 1.1",
        ),
        (
            "vanilla",
            dict(config=config(), loss_agg_mode="mean"),
            "loss_agg_mode: expected one of token-mean.*got 'mean'",
        ),
        (
            "vanilla",
            dict(config=config(global_batch_info={"dp_size": 2})),
            "batch_num_tokens: expected a number with dp_size 2",
        ),
        ("vanilla", dict(), "config: expected verl's ActorConfig, got None"),
        (
            "sapo",
            dict(config=config(global_batch_info={"dp_size": 2})),
            "global_batch_size: expected a number with dp_size 2",
        ),
        ("dro", dict(config=config()), "policy_loss.dro_beta: expected a number above 0.*got None"),
        (
            "dro",
            dict(config=config(**SETTINGS["dro"]), rollout_is_weights=MASK.double()),
            "rollout_is_weights: expected None",
        ),
    ],
)
def test_settings_that_are_not_covered(mode, settings, message):
    with pytest.raises(ValueError, match=message):
        run(f"srt_{mode}", random_batch(), **settings)


@pytest.mark.parametrize("mode", ours.MODES)
def test_signature_is_verls(mode):
    theirs, mine = (
        [
            (p.name, p.default, p.kind)
            for p in inspect.signature(core_algos.get_policy_loss_fn(name)).parameters.values()
        ]
        for name in (mode, f"srt_{mode}")
    )
    assert mine == theirs


# Two prompts, their rollouts mixed up: b answers 1/2 in two spellings and nothing once, a answers 3, 3, 4, 3.
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
AGREE = [1, 1, 1, 1, 0, 0, 1]


def rewards(scores, length=4):
    """As verl's reward loop leaves them: fp32, the score at one of the tokens."""
    padded = torch.zeros(len(scores), length)
    padded[:, 2] = torch.tensor(scores)
    return padded


@pytest.mark.parametrize("kind", ours.KINDS)
def test_majority_advantage(kind):
    scores = [ours.answer_score("math", text, None)["score"] for text in TEXTS]
    mask = torch.tensor([[1, 1, 1, 0]] * 6 + [[1, 0, 0, 0]])
    estimate = core_algos.get_adv_estimator_fn(f"majority_{kind}")
    advantages, returns = estimate(
        token_level_rewards=rewards(scores), response_mask=mask, index=UIDS, config=None
    )
    a, b = 1 / 4, 1 / 3  # agree less the mean: a [1, 1, 0, 1], b [1, 1, 0]
    mean = torch.tensor([b, a, b, a, a - 1, b - 1, a])
    std = torch.tensor([{"a": 0.5, "b": 3**-0.5}[uid] for uid in UIDS])
    expected = {
        "grpo": mean / (std + 1e-4),
        "mean": mean,
        "rloo": mean * torch.tensor([{"a": 4 / 3, "b": 3 / 2}[uid] for uid in UIDS]),
        "batch": mean / (mean.square().mean().sqrt() + 1e-4),
    }[kind]
    assert_close("advantages", advantages, expected[:, None] * mask, atol=1e-6)
    assert torch.equal(advantages, returns)


def test_majority_is_what_verls_own_estimator_makes_of_the_vote():
    scores = [ours.answer_score("math", text, None)["score"] for text in TEXTS]
    mask = torch.ones(7, 4)
    for name in ("grpo", "rloo"):
        theirs = core_algos.get_adv_estimator_fn(name)
        expected, _ = theirs(rewards([float(agrees) for agrees in AGREE]), mask, UIDS)
        advantages, _ = core_algos.get_adv_estimator_fn(f"majority_{name}")(
            rewards(scores), mask, UIDS
        )
        assert_close(
            name, advantages, expected, atol=4e-4
        )  # verl adds 1e-6 to the deviation, we 1e-4 as TRL does


def test_majority_of_nothing():
    estimate = core_algos.get_adv_estimator_fn("majority_grpo")
    assert (
        estimate(torch.zeros(3, 2), torch.ones(3, 2), [1, 1, 2])[0].count_nonzero() == 0
    )  # nobody answers
    assert estimate(torch.zeros(0, 2), torch.ones(0, 2), [])[0].shape == (0, 2)


@pytest.mark.parametrize(
    "score", [0.5, -1.0, float(1 << 24), float("nan")]
)  # a KL in the reward, another reward function
def test_majority_refuses_other_scores(score):
    with pytest.raises(
        ValueError, match="token_level_rewards: expected the scores of answer_score.*got"
    ):
        core_algos.get_adv_estimator_fn("majority_grpo")(
            rewards([3.0, score]), torch.ones(2, 4), ["a", "a"]
        )


def test_answer_score():
    score = partial(ours.answer_score, "math")
    assert score(r"\boxed{0.5}", "1/2") == score(r"\boxed{\frac{1}{2}}", "1/2") | {"acc": 1.0}
    assert score(r"\boxed{7.}", "8") | {"score": None} == {"score": None, "pred": "7", "acc": 0.0}
    assert score("nothing", "8") == {"score": 0.0, "pred": "", "acc": 0.0}
    assert score("it is 12", None, rule="last_number")["acc"] is None
    values = [score(f"\\boxed{{{n}}}", None)["score"] for n in range(2000)]
    assert torch.tensor(values).double().tolist() == values and min(values) >= 1  # exact in fp32
    assert len(set(values)) >= 1999  # 2000^2 / 2^25 = 0.1 expected collisions
    with pytest.raises(ValueError, match="rule"):
        score("x", None, rule="guess")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_linear_cross_entropy(temperature):
    """verl's torch implementation, [1, N] as its models call it, log-probs and entropies used."""
    batch = packed_rollouts(LENGTHS, with_bias=False, temperature=temperature)
    generator = torch.Generator().manual_seed(1)
    dlogprobs, dentropies = torch.randn(2, sum(LENGTHS), generator=generator)
    results = []
    for function in (FusedLinearForPPO(), ours.linear_cross_entropy):
        leaves = hidden, weight = [
            t.clone().requires_grad_() for t in (batch.hidden[None], batch.weight)
        ]
        logprobs, entropies = (
            t.flatten() for t in function(hidden, weight, batch.targets[None], temperature)
        )
        grads = torch.autograd.grad(logprobs @ dlogprobs + entropies @ dentropies, leaves)
        results.append([logprobs.detach(), entropies.detach(), *grads])
    # Of fp32 logits up to 50 a log-prob takes some roundings of 2^-24 * 50 / temperature, in theirs and in ours.
    for name, theirs, mine in zip(
        ("logprobs", "entropies", "dhidden", "dweight"), *results, strict=True
    ):
        assert_close(name, mine, theirs, rtol=5e-5)


def test_linear_cross_entropy_reductions():
    batch = packed_rollouts(LENGTHS)
    logprobs, entropies = ours.linear_cross_entropy(batch.hidden, batch.weight, batch.targets.int())
    assert logprobs.shape == entropies.shape == (sum(LENGTHS),)
    for reduction in ("sum", "mean"):
        reduced, same = ours.linear_cross_entropy(
            batch.hidden, batch.weight, batch.targets, 1.0, reduction
        )
        assert torch.equal(reduced, getattr(logprobs, reduction)()) and torch.equal(same, entropies)
    with pytest.raises(ValueError, match="reduction: expected 'none', 'sum' or 'mean', got 'max'"):
        ours.linear_cross_entropy(batch.hidden, batch.weight, batch.targets, 1.0, "max")


def test_verls_models_call_it(tiny_policy):
    """use_fused_kernels with impl_backend triton, which wants a GPU, runs ours: the same as impl_backend torch."""
    model, ids = tiny_policy.model, torch.arange(3, 15).view(2, 6)
    results = []
    for backend in ("torch", "triton"):
        model.zero_grad()
        out = getattr(dense_common, f"forward_with_{backend}_backend")(
            model, ids, return_dict=True, temperature=0.7
        )
        (out.log_probs.sum() - 0.1 * out.entropy.sum()).backward()
        grads = [parameter.grad.clone() for parameter in model.parameters()]
        results.append([out.log_probs.flatten().detach(), out.entropy.flatten().detach(), *grads])
    for theirs, mine in zip(*results, strict=True):
        assert_close("result", mine, theirs, rtol=1e-5)


def tensor_parallel(rank, path):
    dist.init_process_group(
        "gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2
    )
    batch = packed_rollouts(LENGTHS, vocab_size=332)
    leaves = [t.clone().requires_grad_() for t in (batch.hidden, batch.weight.chunk(2)[rank])]
    results = ours.linear_cross_entropy(*leaves, batch.targets, 0.7, "none", dist.group.WORLD)
    with torch.no_grad():
        again = ours.linear_cross_entropy(*leaves, batch.targets, 0.7, "none", dist.group.WORLD)
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    grads = torch.autograd.grad(results[0].sum() - results[1].sum(), leaves)
    torch.save([*(t.detach() for t in results), *grads], f"{path}/{rank}")
    dist.destroy_process_group()


def test_linear_cross_entropy_tensor_parallel(tmp_path):
    """Two halves of the vocabulary: all know the results, the gradients by hidden add up, those by weight are the halves'."""
    mp.spawn(tensor_parallel, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    batch = packed_rollouts(LENGTHS, vocab_size=332)
    leaves = [t.clone().requires_grad_() for t in (batch.hidden, batch.weight)]
    results = ours.linear_cross_entropy(*leaves, batch.targets, 0.7)
    grads = torch.autograd.grad(results[0].sum() - results[1].sum(), leaves)
    whole = [*first[:2], first[2] + second[2], torch.cat([first[3], second[3]])]
    for name, mine, expected in zip(
        ("logprobs", "entropies", "dhidden", "dweight"), whole, (*results, *grads), strict=True
    ):
        assert_close(name, mine, expected.detach(), rtol=1e-5)


def test_example(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(ours.MODES)
    assert all(float(line.split()[-1]) < 1e-6 for line in printed[1:])


def test_verl_imports_it_where_it_is_told_to():
    """A process that imports verl only, with the variable of the module's docstring."""
    code = "import verl; from verl.trainer.ppo.core_algos import *; print(get_adv_estimator_fn('majority_rloo'))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {
        "VERL_USE_EXTERNAL_MODULES": "srt_fast.integrations.verl",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "majority_advantage" in done.stdout, done.stderr
