"""verl's policy losses and ours on one random batch, both from verl's registry, as its trainer calls them.

    python examples/verl_loss.py

In a run of verl: VERL_USE_EXTERNAL_MODULES=srt_fast.integrations.verl, then loss_mode=srt_vanilla in place of vanilla.
"""

import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig, PolicyLossConfig

import srt_fast.integrations.verl as integration  # registers the srt_ losses

torch.manual_seed(0)
shape = 16, 64  # completions, tokens
response_mask = torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1))
log_prob = -torch.rand(shape)
batch = dict(
    old_log_prob=log_prob + 0.3 * torch.randn(shape),
    response_mask=response_mask,
    advantages=torch.randn(shape[0], 1).expand(shape),
)
config = ActorConfig(
    strategy="fsdp", rollout_n=8, use_dynamic_bsz=True, policy_loss=PolicyLossConfig(dro_beta=0.1)
)


def loss_and_gradient(name: str) -> tuple[float, torch.Tensor]:
    leaf = log_prob.clone().requires_grad_()
    loss, _ = get_policy_loss_fn(name)(
        log_prob=leaf, config=config, loss_agg_mode="token-mean", **batch
    )
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


print(f"{'loss_mode':10}{'verl':>12}{'srt_':>12}  largest difference of a gradient")
for mode in integration.MODES:
    (theirs, expected), (mine, gradient) = loss_and_gradient(mode), loss_and_gradient(f"srt_{mode}")
    print(f"{mode:10}{theirs:12.7f}{mine:12.7f}  {(gradient - expected).abs().max():.1e}")
