"""verl's policy losses beside ours on one random batch. Both come from verl's registry.

    python examples/verl_loss.py

In a run of verl: set VERL_USE_EXTERNAL_MODULES=srt_fast.integrations.verl, then replace the loss
mode, for example vanilla by srt_vanilla.
"""

import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig, PolicyLossConfig

from srt_fast.integrations.verl import MODES  # the import registers the srt_ losses

COMPLETIONS = 16
LENGTH = 64

torch.manual_seed(0)
shape = (COMPLETIONS, LENGTH)
lengths = torch.randint(1, LENGTH + 1, (COMPLETIONS, 1))
log_prob = -torch.rand(shape)
batch = {
    "old_log_prob": log_prob + 0.3 * torch.randn(shape),
    "response_mask": torch.arange(LENGTH) < lengths,
    "advantages": torch.randn(COMPLETIONS, 1).expand(shape),
}
config = ActorConfig(
    strategy="fsdp", rollout_n=8, use_dynamic_bsz=True, policy_loss=PolicyLossConfig(dro_beta=0.1)
)


def loss_and_gradient(loss_mode: str) -> tuple[float, torch.Tensor]:
    leaf = log_prob.clone().requires_grad_()
    loss, _ = get_policy_loss_fn(loss_mode)(
        log_prob=leaf, config=config, loss_agg_mode="token-mean", **batch
    )
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


print(f"{'loss_mode':10}{'verl':>12}{'srt_':>12}  largest difference of a gradient")
for mode in MODES:
    verl_loss, verl_gradient = loss_and_gradient(mode)
    srt_loss, srt_gradient = loss_and_gradient(f"srt_{mode}")
    difference = (srt_gradient - verl_gradient).abs().max().item()
    print(f"{mode:10}{verl_loss:12.7f}{srt_loss:12.7f}  {difference:.1e}")
