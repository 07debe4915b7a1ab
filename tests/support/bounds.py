"""Error bounds of the ops, derived from the arithmetic. They hold for any order of summation.

So they hold on every BLAS, and for any number of threads and width of vectors. The rules (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, chapters 2 to 4):
- An operation has a relative error of at most the unit roundoff u.
- A sum of n terms, or an inner product of length n, has an error of at most gamma(n) * sum |terms| in any order.
- An error passes through a function times the function's slope. Terms in u^2 are left out: they are 1e5 times smaller.
Constants such as 8 u count the operations of the longest path through the PyTorch path and the Triton kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srt_kernels import Objective, reference
from srt_kernels.testing import PackedRollouts, packed_rollouts, relative_error

UNIT_ROUNDOFF = {
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}
NAMES = ("dhidden", "dweight", "dbias")
MEANS = ("ratio", "clip_fraction", "kl", "correction")
STEP = 2.0**-14  # nats, of finite differences: their own error is about this part of a bound


def gamma(terms: int, u: float = UNIT_ROUNDOFF[torch.float32]) -> float:
    """Largest error of a sum of `terms` terms in any order, over the sum of their absolute values."""
    return terms * u / (1 - terms * u)


def exact_rollouts(lengths: list[int], **options) -> PackedRollouts:
    """packed_rollouts with hidden states, weight and bias on a grid: any GEMM makes their logits without error.

    Each partial sum of a logit is a multiple of 2^-16 below 2^8, which fp32 represents. What is left are the errors of
    our own code, so bounds are tight. Hidden states have more bits than TF32, bf16 and fp16: whoever rounds them is
    found. The weight has few bits: it is the same in each of these types.
    """
    batch = packed_rollouts(lengths, **options)
    return replace(
        batch,
        hidden=(batch.hidden * 2**12).round() / 2**12,
        weight=(batch.weight * 2**4).round() / 2**4,
        bias=(batch.bias * 2**12).round() / 2**12,
    )


def assert_within(name: str, actual: Tensor, expected: Tensor, bound: Tensor | float) -> None:
    """Each difference is at most its bound (a number, or of expected's shape). nan only where expected has it."""
    shape = list(expected.shape)
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {shape}"
    assert torch.equal(actual.isnan(), expected.isnan()), f"{name}: nan in other places"
    error = (actual.detach().double() - expected.detach().double()).abs().nan_to_num()
    allowed = torch.as_tensor(bound, dtype=torch.float64, device=error.device).expand_as(error)
    excess = torch.where(error > 0, error / allowed, 0.0)  # 0 is within a bound of 0
    if excess.numel() == 0 or excess.max() <= 1:
        return
    worst = excess.argmax()
    raise AssertionError(
        f"{name}: off by {error.flatten()[worst]:.3g} at {worst.item()} of {shape}, "
        f"allowed {allowed.flatten()[worst]:.3g}"
    )


def assert_rounded(
    name: str, actual: Tensor, exact: Tensor, rounding: float, bound: Tensor
) -> None:
    """The relative error of a gradient is that of its rounding to a half type, and fp32's.

    1.5: an error below fp32's bound may turn a rounding up to one down. Then it is another draw of as many roundings,
    whose norm differs by a few percent.
    """
    allowed = 1.5 * rounding + (bound.norm() / exact.norm()).item()
    error = relative_error(actual, exact)
    assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


class HeadBounds:
    """What an LM head's results are in fp64, and how far those of an op may be away from them.

    Arguments are those of linear_logprob. dtype: of the op's arithmetic. Errors of hidden states, weight and bias
    themselves do not count: the op gets the same numbers.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        bias: Tensor | None = None,
        row_index: Tensor | None = None,
        temperature: float = 1.0,
        softcap: float | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.u = UNIT_ROUNDOFF[dtype]
        if dtype == torch.float64:
            self.u *= 2  # the fp64 reference has errors of its own
        self.rows = len(hidden)
        self.row_index = torch.arange(len(targets)) if row_index is None else row_index
        self.x = hidden.detach().double()[self.row_index]
        self.weight = weight.detach().double()
        self.is_target = torch.zeros(len(targets), len(weight), dtype=torch.bool)
        self.is_target.scatter_(1, targets[:, None], True)
        self.temperature = temperature
        self.softcap = softcap
        product, product_error = self._product(bias)
        self._form_logits(product, product_error)
        self._form_results()

    def _product(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The GEMM and the bias [N, V], and their errors."""
        product = self.x @ self.weight.T
        size = self.x.abs() @ self.weight.T.abs()
        grid = _grid(self.x) * _grid(self.weight)
        if bias is not None:
            bias = bias.detach().double()
            product = product + bias
            size = size + bias.abs()
            grid = min(grid, _grid(bias))
        is_on_cpu = self.x.device.type == "cpu"  # a tensor core may drop the last bits of a product
        if is_on_cpu and size.numel() and size.max() * self.u < grid:
            return product, torch.zeros_like(product)  # every partial sum is representable
        return product, gamma(self.x.shape[1] + 1, self.u) * size

    def _form_logits(self, product: Tensor, error: Tensor) -> None:
        """Softcap and temperature; then the errors of softmax's exponentials, as errors of the logits."""
        capped = product
        self.slope = torch.ones_like(product)  # of the softcap
        if self.softcap is not None:
            share = torch.tanh(product / self.softcap)
            capped = self.softcap * share
            self.slope = 1 - share.square()
            # The quotient's rounding, then those of tanh: ten, as a quotient of expm1's series.
            error = self.slope * (error + self.u * product.abs()) + 10 * self.u * capped.abs()
        logits = capped / self.temperature
        error = error / self.temperature
        if self.temperature != 1:
            error = error + 2 * self.u * logits.abs()  # the factor 1 / T is rounded, too
        self.largest = logits.abs().amax(1, keepdim=True)
        self.shift = logits - logits.amax(1, keepdim=True)
        # exp(shift): the difference and a factor log2(e) are rounded, and the function itself.
        self.logit_error = error + self.u * (4 * self.shift.abs() + 4)
        self.log_p = torch.log_softmax(logits, 1)
        self.p = self.log_p.exp()

    def _form_results(self) -> None:
        vocabulary = gamma(self.weight.shape[0] + 8, self.u)  # sums over it
        self.logprobs = self.log_p[self.is_target]
        self.entropies = -(self.p * self.log_p).sum(1)
        p_others = self.p.masked_fill(self.is_target, 0.0)
        self.rest = p_others.sum(1)  # 1 - p of the target
        at_target = self.logit_error[self.is_target]
        # dlogprob = (1 - p_t) dz_t - sum of the others' p_j dz_j. The log-odds of the target are a sum of logits.
        own_sums = vocabulary + 4 * self.u * self.largest[:, 0]
        self.odds_error = self.rest * (at_target + own_sums) + (p_others * self.logit_error).sum(1)
        self.logprob_error = self.odds_error + 8 * self.u * self.logprobs.abs()
        self.spread = self.log_p + self.entropies[:, None]  # dentropy = -sum p_j spread_j dz_j
        self.entropy_error = (self.p * self.spread.abs() * self.logit_error).sum(1)
        self.entropy_error += (vocabulary + 16 * self.u) * (1 + (self.p * self.shift.abs()).sum(1))
        mean_error = (self.p * self.logit_error).sum(1, keepdim=True)
        self.log_p_error = (1 - self.p) * self.logit_error + mean_error + vocabulary + 16 * self.u

    def dlogits(self, grad_logprob: Tensor, grad_entropy: Tensor | None = None) -> Tensor:
        """[N, V] the gradient by the GEMM's products, of gradients [N] by log-probs and entropies."""
        dlogits = grad_logprob[:, None] * self._slope_of_logprob()
        if grad_entropy is not None:
            dlogits = dlogits - grad_entropy[:, None] * self.p * self.spread
        return dlogits * self.slope / self.temperature

    def gradients(
        self,
        grad_logprob: Tensor,
        grad_entropy: Tensor | None = None,
        grad_logprob_error: Tensor | float = 0.0,
    ) -> list[Tensor]:
        """Bounds of dhidden, dweight and dbias, of gradients [N] and their errors [N]."""
        grad_logprob = grad_logprob.double()
        grad_entropy = torch.zeros_like(grad_logprob) if grad_entropy is None else grad_entropy
        size, error = self._dlogits_errors(grad_logprob, grad_entropy.double(), grad_logprob_error)
        over_vocabulary = gamma(self.weight.shape[0] + len(self.x), self.u)
        over_tokens = gamma(len(self.x) + 8, self.u)
        dhidden = (error + over_vocabulary * size) @ self.weight.abs()
        error = error + over_tokens * size
        return [self._add_rows(dhidden), error.T @ self.x.abs(), error.sum(0)]

    def rounded_gradients(
        self, dtype: torch.dtype, grad_logprob: Tensor, grad_entropy: Tensor | None = None
    ) -> list[tuple[Tensor, float]]:
        """dhidden and dweight, and the relative error that their rounding to `dtype` costs.

        The rounding is that of dlogits, which a GEMM in `dtype` takes, and that of the result.
        """
        dlogits = self.dlogits(grad_logprob, grad_entropy)
        gradients = []
        for exact, rounded in zip(
            self._products_with(dlogits), self._products_with(_round(dlogits, dtype)), strict=True
        ):
            gradients.append((exact, relative_error(_round(rounded, dtype), exact)))
        return gradients

    def _products_with(self, dlogits: Tensor) -> list[Tensor]:
        return [self._add_rows(dlogits @ self.weight), dlogits.T @ self.x]

    def _slope_of_logprob(self) -> Tensor:
        return torch.where(self.is_target, self.rest[:, None], -self.p)

    def _dlogits_errors(
        self, grad_logprob: Tensor, grad_entropy: Tensor, grad_logprob_error: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """[N, V] the size of dlogits before anything cancels, and their error."""
        u = self.u
        by_logprob = grad_logprob.abs()[:, None]
        by_entropy = grad_entropy.abs()[:, None]
        slope = self._slope_of_logprob().abs()
        log_odds = self.logprobs - self.rest.log()
        at_target = self.p[self.is_target] * self.odds_error
        at_target = at_target + u * self.rest * (8 + log_odds.abs().nan_to_num(posinf=0.0))
        slope_error = torch.where(self.is_target, at_target[:, None], self.p * self.log_p_error)
        spread_error = self.log_p_error + self.entropy_error[:, None]
        spread_error = spread_error + 8 * u * (1 + self.shift.abs() + self.entropies[:, None])
        entropy_part = self.p * self.spread.abs()
        entropy_part_error = self.p * (self.spread.abs() * self.log_p_error + spread_error)
        size = by_logprob * slope + by_entropy * entropy_part
        error = by_logprob * slope_error + by_entropy * entropy_part_error
        error = error + torch.as_tensor(grad_logprob_error).reshape(-1, 1) * slope
        error = error + 8 * u * self.p * (by_logprob + by_entropy)  # they are added before p
        if self.softcap is not None:
            logit_error = self.logit_error + u * (4 * self.shift.abs() + 4 * self.largest)
            softcap_error = 24 * u + 2 * logit_error * self.temperature / self.softcap
            error = error * self.slope + size * softcap_error
            size = size * self.slope
        return size / self.temperature, (error + 16 * u * size) / self.temperature

    def _add_rows(self, rows: Tensor) -> Tensor:
        """[N, H] -> [M, H], to the hidden rows that they are of."""
        return rows.new_zeros(self.rows, rows.shape[1]).index_add_(0, self.row_index, rows)


def _grid(tensor: Tensor) -> float:
    """Largest power of two of which all numbers are multiples. 0 if it is below 2^-40."""
    for exponent in range(41):
        scaled = tensor * 2.0**exponent
        if torch.equal(scaled, scaled.round()):
            return 2.0**-exponent
    return 0.0


def _round(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """To dtype's bits, whatever the size of the numbers: fp16 gradients are scaled before they are rounded."""
    scale = 2.0 ** torch.frexp(tensor.abs().max())[1]
    return (tensor / scale).to(dtype).double() * scale


@dataclass(frozen=True, kw_only=True)
class LossBounds:
    """Bounds of what linear_policy_loss returns, and of the gradients of its loss."""

    loss: float
    logprobs: Tensor  # [N]
    entropies: Tensor  # [N]
    means: dict[str, float]
    gradients: list[Tensor]  # dhidden, dweight, dbias


class Sensitivity:
    """What a loss makes of errors of log-probs: finite differences of the fp64 reference, token by token."""

    def __init__(
        self,
        head: HeadBounds,
        batch: PackedRollouts,
        objective: Objective,
        *,
        normalizer: float | None = None,
        **logprobs: Tensor,
    ):
        """logprobs: old_logprobs, ref_logprobs, sampler_logprobs, as linear_policy_loss has them."""
        self._objective = objective
        self._advantages = batch.advantages.double()
        self._cu_seqlens = batch.cu_seqlens
        self._normalizer = normalizer
        self._logprobs = {name: tensor.double() for name, tensor in logprobs.items()}
        self.entropies = head.entropies
        self.grad_logprob, self.grad_entropy, self.results = self._evaluate(head.logprobs)
        results_slopes = []
        gradient_slopes = []
        for token in torch.eye(len(head.logprobs), dtype=torch.float64):
            gradient, _, results = self._evaluate(head.logprobs + STEP * token)
            gradient_slopes.append((gradient - self.grad_logprob).abs() / STEP)
            results_slopes.append((results - self.results).abs() / STEP)
        self._gradient_slopes = torch.stack(gradient_slopes, 1)  # [N, N]
        self._results_slopes = torch.stack(results_slopes, 1)  # [5, N]
        size, *_ = self._results(head.logprobs, -self._advantages.abs(), -self.entropies)
        self._size = max(abs(size.item()), abs(self.results[0].item()))

    def _results(self, logprobs: Tensor, advantages: Tensor, entropies: Tensor) -> list[Tensor]:
        """Loss and means."""
        out = reference.policy_loss(
            logprobs,
            advantages,
            self._cu_seqlens,
            self._objective,
            entropies=entropies,
            normalizer=self._normalizer,
            **self._logprobs,
        )
        return [out.loss, *(getattr(out, name) for name in MEANS)]

    def _evaluate(self, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the loss by log-probs and entropies, and loss and means [5]."""
        leaves = (logprobs.clone().requires_grad_(), self.entropies.clone().requires_grad_())
        results = self._results(leaves[0], self._advantages, leaves[1])
        gradients = torch.autograd.grad(results[0], leaves, materialize_grads=True)
        values = torch.stack([result.detach().double() for result in results])
        return gradients[0], gradients[1], values

    def bounds(self, head: HeadBounds, scale: float = 1.0) -> LossBounds:
        """Of arithmetic in head.dtype. scale: of the loss whose gradients are taken."""
        u = head.u
        gradient_error = self._gradient_slopes @ head.logprob_error
        gradient_error += 32 * u * self.grad_logprob.abs().max()  # the objective's own operations
        results_error = self._results_slopes @ head.logprob_error
        loss_error = results_error[0] + self.grad_entropy.abs() @ head.entropy_error
        means = {}
        for name, value, error in zip(MEANS, self.results[1:], results_error[1:], strict=True):
            rounding = 32 * u + 2 * UNIT_ROUNDOFF[torch.float32]  # a mean is fp32
            means[name] = (error + rounding * (1 + value.abs())).item()
        gradients = head.gradients(
            scale * self.grad_logprob, scale * self.grad_entropy, scale * gradient_error
        )
        return LossBounds(
            loss=(loss_error + 32 * u * self._size).item(),
            logprobs=head.logprob_error,
            entropies=head.entropy_error,
            means=means,
            gradients=gradients,
        )
