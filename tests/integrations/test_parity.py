"""The losses that others wrote, on the same rollouts padded: TRL's trainers and Liger's fused linear GRPO loss.

TRL's GRPOTrainer is the real one, from a rollout_func to the loss; only the forward pass of its model is replaced, by
leaves, so that gradients by log-probs and entropies can be compared. Left out, as no Objective says them: vespo, TRL's
off-policy mask and entropy quantile.
"""

from dataclasses import replace

import pytest
import torch

from srt_kernels import Objective, linear_policy_loss, policy_loss
from srt_kernels.testing import assert_close, packed_rollouts

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # what transformers and TRL deprecate in themselves
preset = Objective.preset
LENGTHS = [3, 1, 5, 0, 7, 1, 9, 2]  # the empty one is a truncated completion, which TRL masks
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.5]  # two groups of four; two advantages are 0
ADVANTAGES = torch.tensor(REWARDS) - 0.5
MASK = torch.arange(9) < torch.tensor(LENGTHS)[:, None]  # [B, T]
CU_SEQLENS = torch.tensor([0, *LENGTHS]).cumsum(0)
SEQUENCE = dict(ratio="sequence", clip_low=0.05, clip_high=0.01)
TOLERANCE = 100 * 28 * 2**-53  # fp64: terms of size 1, some operations each, 28 tokens in all
FP32 = 2 * 2**-24  # a mean in fp32, on both sides

# What they call it, and what it is. Each row is a preset or a path of its own; ratios lie on both sides of every bound.
CASES = {
    "grpo": ("grpo", preset("grpo")),
    "bnpo": ("bnpo", preset("bnpo")),
    "dr_grpo": ("dr_grpo", preset("dr_grpo", max_length=16)),
    "dapo": ("dapo", preset("dapo")),
    "srt": ("bnpo", preset("srt", delta=1.25)),
    "cispo": ("cispo", preset("cispo", clip_high=1.1)),
    "reinforce, importance weighted": (
        "cispo",
        preset("reinforce", ratio="token", clip_high=1e3),
    ),  # cap out of reach
    "sapo": (
        "sapo",
        preset("sapo", tau_pos=2.0, tau_neg=3.0),
    ),  # TRL rounds the default, 1.05, to fp32
    "gspo": ("grpo", preset("gspo")),
    "gspo, delta": ("grpo", preset("gspo", delta=1.05)),
    "bnpo, sequence ratio": ("bnpo", preset("bnpo", **SEQUENCE)),
    "dapo, sequence ratio": ("dapo", preset("dapo", **SEQUENCE)),
    "dr_grpo, sequence ratio": ("dr_grpo", preset("dr_grpo", max_length=16, **SEQUENCE)),
    # arXiv 2602.05261: a sequence's loss times its length
    "luspo": ("luspo", preset("dr_grpo", max_length=1, **SEQUENCE)),
}
TRL_CASES = CASES | {
    "cispo, sequence ratio": (
        "cispo",
        preset("cispo", ratio="sequence", clip_high=1.01),
    ),  # Liger refuses these two
    "sapo, sequence ratio": ("sapo", preset("sapo", ratio="sequence", tau_neg=3.0)),
    "grpo, token truncate": (
        "grpo",
        preset("grpo", correction="token_truncate", correction_cap=1.1),
    ),
    "dapo, token mask": ("dapo", preset("dapo", correction="token_mask", correction_cap=1.2)),
    "cispo, sequence mask": (
        "cispo",
        preset("cispo", correction="sequence_mask", correction_cap=1.5),
    ),
    "gspo, sequence truncate": (
        "grpo",
        preset("gspo", correction="sequence_truncate", correction_cap=1.5),
    ),
    # With other reductions TRL's bonus is still a mean over tokens, ours weighs entropies as it does losses.
    "dapo, entropy": ("dapo", preset("dapo", entropy_coef=0.05)),
}
KL = {
    "no KL": dict(),
    "k3": dict(kl_coef=0.04),
    "k3, bias corrected": dict(kl_coef=0.04, kl_bias_correction=True),
}
# A KL times a sequence's ratio, as both have it, is neither DeepSeek-V3.2's (eq. 7: the token's) nor unbiased, as TRL's
# documentation says: with sequence ratios they and we differ.
GRID = [
    (case, kl)
    for case in TRL_CASES
    for kl in KL
    if "bias" not in kl or TRL_CASES[case][1].ratio == "token"
]


def pad(packed, junk):
    """[N, ...] -> [B, T, ...]."""
    padded = torch.full((*MASK.shape, *packed.shape[1:]), junk, dtype=packed.dtype)
    padded[MASK] = packed
    return padded


def normal(seed):
    return torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(seed)).double()


LOGPROBS = -normal(24).abs()
OLD, REF, SAMPLER = (LOGPROBS + 0.3 * normal(seed) for seed in (25, 26, 27))
SAMPLER = SAMPLER.float().double()  # as TRL stores what a rollout_func returns
ENTROPIES = normal(28).abs()


@pytest.fixture
def trainer(tiny_model, tmp_path):
    """Settings -> TRL's trainer with these, as train() would leave it before a loss."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    def rollouts(prompts, trainer):
        end = trainer.eos_token_ids[0]
        completions = [[5] * (n - 1) + [end] if n else [5] * 4 for n in LENGTHS]
        logprobs = [part.tolist() or [-1.0] * 4 for part in SAMPLER.split(LENGTHS)]
        return {
            "prompt_ids": [[5]] * len(prompts),
            "completion_ids": completions,
            "logprobs": logprobs,
        }

    def make(kind="GRPO", **settings):
        args = getattr(trl, f"{kind}Config")(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            num_generations=4,
            generation_batch_size=8,
            mask_truncated_completions=True,
            **settings,
        )
        data, hook = (
            Dataset.from_dict({"prompt": ["?"]}),
            {"rollout_func": rollouts} if kind == "GRPO" else {},
        )
        trainer = getattr(trl, f"{kind}Trainer")(
            tiny_model, lambda **_: REWARDS, args, data, **hook
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        return trainer

    return make


def config(loss_type, o):
    """GRPOConfig's names for an objective."""
    correction = dict(
        vllm_importance_sampling_mode=o.correction,
        vllm_importance_sampling_clip_max=o.correction_cap,
    )
    return dict(
        loss_type=loss_type,
        importance_sampling_level="sequence" if o.ratio == "sequence" else "token",
        epsilon=o.clip_low,
        epsilon_high=o.clip_high,
        delta=o.delta,
        max_completion_length=o.max_length or 16,
        sapo_temperature_pos=o.tau_pos,
        sapo_temperature_neg=o.tau_neg,
        beta=o.kl_coef,
        use_bias_correction_kl=o.kl_bias_correction,
        entropy_coef=o.entropy_coef,
        **(correction if o.correction != "none" else {}),
    )


def answer_with_leaves(trainer, rows=slice(None)):
    """Log-probs and entropies [B, T] in place of the model's forward pass."""
    leaves = pad(LOGPROBS, -1.0).requires_grad_(), pad(ENTROPIES, 7.0).requires_grad_()

    def forward(model, *_, compute_entropy=False, **__):
        if compute_entropy:  # only the loss asks for entropies
            return *(leaf[rows] for leaf in leaves), None
        return pad(REF, -3.0) if model is trainer.ref_model else pad(OLD, -2.0), None, None

    trainer._get_per_token_logps_and_entropies = forward
    return leaves


def ours(o, advantages, *, old=OLD, first=0, last=8, normalizer=None):
    """policy_loss of the rollouts from first to last, and its gradients padded."""
    part = slice(CU_SEQLENS[first], CU_SEQLENS[last])
    leaves = LOGPROBS.clone().requires_grad_(), ENTROPIES.clone().requires_grad_()
    out = policy_loss(
        leaves[0][part],
        advantages,
        CU_SEQLENS[first : last + 1] - CU_SEQLENS[first],
        o,
        old_logprobs=None if old is None else old[part],
        ref_logprobs=REF[part],
        sampler_logprobs=SAMPLER[part],
        entropies=leaves[1][part],
        normalizer=normalizer,
    )
    return out, [
        pad(grad, 0.0) for grad in torch.autograd.grad(out.loss, leaves, materialize_grads=True)
    ]


def check(loss, leaves, expected, grads):
    assert_close("loss", loss.detach(), expected.loss.detach(), atol=TOLERANCE)
    actual = torch.autograd.grad(loss, leaves, materialize_grads=True)
    for name, grad, wanted in zip(("dlogprobs", "dentropies"), actual, grads, strict=True):
        assert_close(name, grad, wanted, atol=TOLERANCE)


@pytest.mark.parametrize("case, kl", GRID)
def test_trl(case, kl, trainer):
    loss_type, o = TRL_CASES[case][0], replace(TRL_CASES[case][1], **KL[kl])
    theirs = trainer(num_iterations=2, **config(loss_type, o))
    if o.correction != "none":
        theirs.use_vllm, theirs._last_loaded_step = (
            True,
            0,
        )  # not by GRPOConfig, which would start vLLM
    leaves = answer_with_leaves(theirs)
    inputs = theirs._generate_and_score_completions([{"prompt": "?"}] * 8)
    assert torch.equal(inputs["completion_mask"].bool(), MASK)
    out, grads = ours(o, inputs["advantages"])
    check(theirs._compute_loss(theirs.model, inputs), leaves, out, grads)
    logged = {name: values[-1] for name, values in theirs._metrics["train"].items()}
    if o.kl_coef > 0:
        assert logged["kl"] == pytest.approx(out.kl.item(), rel=FP32)
    if o.ratio == "token" and o.correction.startswith("token"):
        mean = logged["sampling/importance_sampling_ratio/mean"]
        assert mean == pytest.approx(out.correction.item(), rel=FP32)
    # Of sequence ratios TRL means over completions, of delta it counts nothing, of cispo's cap only where A > 0.
    if o.surrogate == "clip" and o.ratio == "token" and o.delta is None:
        assert logged["clip_ratio/low_mean"] > 0 and logged["clip_ratio/high_mean"] > 0
        assert logged["clip_ratio/region_mean"] == pytest.approx(out.clip_fraction.item(), rel=FP32)


@pytest.mark.parametrize(
    "loss_type, o",
    [
        (
            "grpo",
            preset("grpo", kl_coef=0.04, kl_bias_correction=True),
        ),  # the ratio is 1, and still has a gradient
        ("grpo", preset("gspo")),
        ("cispo", preset("reinforce", clip_high=5.0)),
        ("sapo", preset("sapo", tau_neg=3.0)),
    ],
)
def test_trl_on_policy(loss_type, o, trainer):
    theirs = trainer(num_iterations=1, **config(loss_type, o))
    leaves = answer_with_leaves(theirs)
    inputs = theirs._generate_and_score_completions([{"prompt": "?"}] * 8)
    assert "old_per_token_logps" not in inputs
    check(
        theirs._compute_loss(theirs.model, inputs), leaves, *ours(o, inputs["advantages"], old=None)
    )


@pytest.mark.parametrize(
    "loss_type, normalizers",
    [
        ("dapo", (28, 28)),
        ("grpo", (8, 8)),
        ("dr_grpo", (8, 8)),  # of the whole batch
        (
            "bnpo",
            (2 * 9, 2 * 19),
        ),  # the mean over each micro-batch's own tokens, and the mean of the two
    ],
)
def test_trl_micro_batches(loss_type, normalizers, trainer):
    """Gradient accumulation over two halves is a normalizer."""
    o = preset(loss_type, max_length=16)
    theirs = trainer(
        num_iterations=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **config(loss_type, o),
    )
    answer_with_leaves(theirs)
    inputs = theirs._generate_and_score_completions([{"prompt": "?"}] * 8)
    for first, normalizer in zip((0, 4), normalizers, strict=True):
        rows = slice(first, first + 4)
        leaves = answer_with_leaves(theirs, rows)
        loss = theirs._compute_loss(
            theirs.model, {k: v[rows] if v.dim() else v for k, v in inputs.items()}
        )
        mine = ours(
            o, inputs["advantages"][rows], first=first, last=first + 4, normalizer=normalizer
        )
        check(loss, leaves, *mine)


def test_trl_rloo(trainer):
    """TRL's loss is -A times the ratio of a completion, clipped, ours -A logprob: on policy the gradients are equal."""
    theirs = trainer("RLOO", beta=0.0)
    leaves = answer_with_leaves(theirs)
    tokens = dict(
        prompt_ids=MASK[:, :1],
        prompt_mask=MASK[:, :1],
        completion_ids=MASK,
        completion_mask=MASK.long(),
    )
    old = (leaves[0].detach() * MASK).sum(1)
    loss = theirs._compute_loss(theirs.model, tokens | dict(old_logps=old, advantages=ADVANTAGES))
    _, grads = ours(preset("rloo"), ADVANTAGES, old=None)
    assert_close("dlogprobs", torch.autograd.grad(loss, leaves[0])[0], grads[0], atol=TOLERANCE)


# Liger's luspo sums what a KL adds over padding too: its loss grows with the width of the batch, TRL's does not.
@pytest.mark.parametrize(
    "case, kl", [(case, kl) for case, kl in GRID if case in CASES and (case, kl) != ("luspo", "k3")]
)
@pytest.mark.parametrize("temperature, with_bias", [(1.0, False), (0.7, True)])
def test_liger(case, kl, temperature, with_bias):
    liger = pytest.importorskip("liger_kernel.chunked_loss")
    loss_type, o = CASES[case][0], replace(CASES[case][1], **KL[kl])
    batch = packed_rollouts(LENGTHS, with_bias=with_bias, temperature=temperature)
    old, ref = batch.old_logprobs.double(), batch.ref_logprobs.double()
    normalizer = 40 if loss_type in ("dapo", "cispo") else None  # the other losses have none
    leaves = hidden, weight, bias = [
        t.double().requires_grad_() for t in (batch.hidden, batch.weight, batch.bias)
    ]
    out = linear_policy_loss(
        hidden,
        weight,
        batch.targets,
        ADVANTAGES,
        CU_SEQLENS,
        o,
        old_logprobs=old,
        ref_logprobs=ref,
        bias=bias,
        temperature=temperature,
        normalizer=normalizer,
    )
    expected = torch.autograd.grad(out.loss, leaves)
    theirs = liger.LigerFusedLinearGRPOLoss(
        compiled=False,
        use_ref_model=o.kl_coef > 0,
        chunk_size=3,
        loss_type=loss_type,
        temperature=temperature,
        importance_sampling_level="sequence" if o.ratio == "sequence" else "token",
        max_completion_length=o.max_length,
        epsilon_low=o.clip_low,
        epsilon_high=o.clip_high,
        delta=o.delta,
        beta=o.kl_coef,
        use_bias_correction_kl=o.kl_bias_correction,
        sapo_temperature_pos=o.tau_pos,
        sapo_temperature_neg=o.tau_neg,
    )
    loss, metrics = theirs(
        pad(hidden, 1.0),
        weight,
        pad(batch.targets, 0),
        MASK.long(),
        ADVANTAGES,
        bias if with_bias else None,
        pad(ref, -3.0),
        pad(old, -2.0),
        num_items_in_batch=normalizer,
    )
    grads = torch.autograd.grad(loss, leaves[: 2 + with_bias])
    # Its log-probs are fp32 even from fp64: at most 7 roundings of logits. The slopes of these losses by log-probs add up
    # to less than 2, and a gradient takes the error of a log-prob and that of the probabilities.
    logits = (batch.hidden @ batch.weight.T + batch.bias) / temperature
    tolerance = 2 * 7 * 2**-24 * logits.abs().max().item()
    assert_close("loss", loss.detach().double(), out.loss.detach(), atol=tolerance)
    for name, grad, wanted in zip(("dhidden", "dweight", "dbias"), grads, expected, strict=False):
        assert_close(name, grad, wanted, rtol=tolerance)
    if o.kl_coef > 0:  # otherwise our means are over fewer rows
        assert metrics[0].item() == pytest.approx(out.kl.item(), abs=tolerance)
        if o.surrogate == "clip" and o.delta is None:
            assert metrics[1].item() == pytest.approx(out.clip_fraction.item(), rel=FP32)
