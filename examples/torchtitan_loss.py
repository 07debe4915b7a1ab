"""torchtitan's DAPO loss beside ours on one random batch, as its RL trainer calls them.

    python examples/torchtitan_loss.py

In a run of torchtitan's experiments/rl: PolicyTrainer.Config(loss=FusedDAPOLoss.Config(), ...).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import BaseLoss, ChunkedLossWrapper
from torchtitan.config import CompileConfig
from torchtitan.experiments.rl.losses import DAPOLoss

from srt_fast.integrations.padded import pack_per_token
from srt_kernels import Objective, linear_policy_loss


class FusedDAPOLoss(ChunkedLossWrapper):
    """torchtitan's DAPOLoss in three GEMMs, without [B, L, V] logits.

    A subclass of ChunkedLossWrapper, because torchtitan gives those the LM head, and hidden states
    in place of logits. The objective must be of single tokens: a row of torchtitan's batch holds
    several samples. Log-ratios below -10 keep their gradient; DAPOLoss cuts it.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        ratio_clip_low: float = 0.2
        ratio_clip_high: float = 0.2

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        # delta: DAPOLoss cuts log-ratios at 10.
        self.objective = Objective.preset(
            "dapo",
            clip_low=config.ratio_clip_low,
            clip_high=config.ratio_clip_high,
            delta=math.exp(10),
        )
        self.lm_head: nn.Module | None = None

    def set_lm_head(self, lm_head: nn.Module) -> None:
        """Called by torchtitan's trainer."""
        super().set_lm_head(lm_head)
        # FSDP2 makes the head's weight whole in its forward methods only. This one takes no
        # tensors: FSDP would cast them.
        lm_head.run = lambda function: function()
        if isinstance(lm_head, FSDPModule):
            register_fsdp_forward_method(lm_head, "run")

    def __call__(
        self,
        pred: Tensor,
        labels: Tensor,
        global_valid_tokens: float | None = None,
        *,
        generator_logprobs: Tensor,
        advantages: Tensor,
        loss_mask: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """pred: hidden states [B, L, H]. The others are [B, L]; labels are shifted already.

        Returns the loss and metrics that torchtitan sums over ranks.
        """
        mask = loss_mask & generator_logprobs.isfinite()
        places, cu_seqlens = pack_per_token(mask)
        denominator = max(global_valid_tokens or 1, 1)

        def loss_and_statistics() -> tuple[Tensor, Tensor, Tensor]:
            weight = self.lm_head.weight
            if isinstance(weight, DTensor):
                raise ValueError("lm_head: expected a whole weight, got one of tensor parallelism")
            result = linear_policy_loss(
                pred.flatten(0, 1),
                weight,
                labels[mask],
                advantages[mask],
                cu_seqlens,
                self.objective,
                old_logprobs=generator_logprobs[mask],
                row_index=places,
                normalizer=float(denominator),
                unique_rows=True,
                all_rows=True,
            )
            return result.loss, result.logprobs, result.entropies

        loss, logprobs, entropies = self.lm_head.run(loss_and_statistics)
        difference = (logprobs - generator_logprobs[mask]).detach()
        return loss, {
            "loss/mean": loss.detach(),
            "loss/ratio_mean": difference.clamp(-10, 10).exp().sum() / denominator,
            "bit_wise/logprob_diff/mean": difference.sum() / denominator,
            "trainer/entropy/mean": entropies.detach().sum() / denominator,
        }


def random_batch(rows: int, length: int, vocab_size: int) -> dict[str, Tensor]:
    """What torchtitan's trainer gives a loss: [B, L] tensors, prompts and padding masked out."""
    shape = (rows, length)
    loss_mask = torch.rand(shape) < 0.7
    generator_logprobs = -3 * torch.rand(shape)
    generator_logprobs[0, :2] = math.nan  # vLLM could not score them
    return {
        "labels": torch.randint(vocab_size, shape),
        "generator_logprobs": generator_logprobs * loss_mask,
        "advantages": torch.randn(shape).round(decimals=0) * loss_mask,
        "loss_mask": loss_mask,
    }


def loss_and_gradients(
    loss_function: ChunkedLossWrapper, hidden: Tensor, head: nn.Module, batch: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """The loss, its gradients by hidden states and by the head's weight, and its metrics."""
    loss_function.set_lm_head(head)
    leaf = hidden.clone().requires_grad_()
    head.weight.grad = None
    valid = batch["loss_mask"] & batch["generator_logprobs"].isfinite()
    loss, metrics = loss_function(leaf, global_valid_tokens=int(valid.sum()), **batch)
    loss.backward()
    return loss.detach(), [leaf.grad, head.weight.grad], metrics


def main() -> None:
    torch.manual_seed(0)
    batch = random_batch(rows=4, length=64, vocab_size=1000)
    hidden = torch.randn(4, 64, 128)
    head = nn.Linear(128, 1000, bias=False)
    own = ChunkedLossWrapper.Config(loss_fn=DAPOLoss.Config(ratio_clip_high=0.28)).build()
    fused = FusedDAPOLoss.Config(ratio_clip_high=0.28).build()
    expected, expected_gradients, _ = loss_and_gradients(own, hidden, head, batch)
    loss, gradients, _ = loss_and_gradients(fused, hidden, head, batch)
    print(f"torchtitan {expected.item():.7f}, fused {loss.item():.7f}")
    for name, gradient, other in zip(
        ("hidden states", "head"), gradients, expected_gradients, strict=True
    ):
        difference = (gradient - other).abs().max().item()
        print(f"{name}: largest difference of a gradient {difference:.1e}")


if __name__ == "__main__":
    main()
