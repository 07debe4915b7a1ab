"""Error bounds of an LM head's results, derived from the arithmetic.

They hold for any order of summation: on every BLAS, for any number of threads and width of vectors.
The rules (Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapters 2 to 4):

- An operation has a relative error of at most the unit roundoff u.
- A sum of n terms has an error of at most gamma(n) * sum |terms|, in any order. So has an inner
  product.
- An error passes through a function times the function's slope. Terms in u^2 are left out: they are
  1e5 times smaller.

Constants such as 8 u count operations, of the longer one of the PyTorch path and the Triton
kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srt_kernels.testing import relative_error

UNIT_ROUNDOFF = {
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}
NAMES = ("dhidden", "dweight", "dbias")


def gamma(terms: int, u: float = UNIT_ROUNDOFF[torch.float32]) -> float:
    """Largest error of a sum in any order, over the sum of the terms' absolute values."""
    return terms * u / (1 - terms * u)


def assert_within(name: str, actual: Tensor, expected: Tensor, bound: Tensor | float) -> None:
    """Each difference is at most its bound. nan only where expected has it.

    bound: a number, or a tensor of expected's shape.
    """
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
    """The relative error of a gradient is that of its rounding to a half type, and fp32's bound.

    Errors of fp32 may turn a rounding up into one down. The norm of other roundings of the same
    numbers differs by a few percent: 1.5 times `rounding` is allowed.
    """
    allowed = 1.5 * rounding + (bound.norm() / exact.norm()).item()
    error = relative_error(actual, exact)
    assert error <= allowed, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}"


class HeadBounds:
    """An LM head's results in fp64, and how far those of an op may be from them.

    logprobs, entropies [N] and logprob_error, entropy_error [N]. N tokens, M hidden rows.
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
        """Arguments of linear_logprob, and the type of the op's arithmetic.

        The op gets the same numbers, so hidden states, weight and bias have no errors.
        """
        self.u = UNIT_ROUNDOFF[dtype]
        if dtype == torch.float64:
            self.u *= 2  # the fp64 reference has errors of its own
        self._rows = len(hidden)
        self._row_index = torch.arange(len(targets)) if row_index is None else row_index
        self._x = hidden.detach().double()[self._row_index]
        self._weight = weight.detach().double()
        self._is_target = torch.zeros(len(targets), len(weight), dtype=torch.bool)
        self._is_target.scatter_(1, targets[:, None], True)
        self._temperature = temperature
        self._softcap = softcap
        products, error = self._form_products(bias)
        self._form_logits(products, error)
        self._form_results()

    def _form_products(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Products of the GEMM plus bias [N, V], and their errors."""
        products = self._x @ self._weight.T
        size = self._x.abs() @ self._weight.T.abs()
        grid = _grid(self._x) * _grid(self._weight)
        if bias is not None:
            bias = bias.detach().double()
            products = products + bias
            size = size + bias.abs()
            grid = min(grid, _grid(bias))
        # Every partial sum is representable. But a tensor core may drop the last bits.
        if self._x.device.type == "cpu" and size.numel() and size.max() * self.u < grid:
            return products, torch.zeros_like(products)
        return products, gamma(self._x.shape[1] + 1, self.u) * size

    def _form_logits(self, products: Tensor, error: Tensor) -> None:
        """Softcap, temperature and softmax. logit_error: also what exp makes of each logit."""
        logits = products
        self._slope = torch.ones_like(products)  # of the softcap
        if self._softcap is not None:
            share = torch.tanh(products / self._softcap)
            logits = self._softcap * share
            self._slope = 1 - share.square()
            # The quotient is rounded. tanh is a quotient of expm1's series: ten roundings.
            error = self._slope * (error + self.u * products.abs()) + 10 * self.u * logits.abs()
        logits = logits / self._temperature
        error = error / self._temperature
        if self._temperature != 1:
            error = error + 2 * self.u * logits.abs()  # the factor 1 / temperature is rounded, too
        self._largest = logits.abs().amax(1, keepdim=True)
        self._shift = logits - logits.amax(1, keepdim=True)
        # exp(shift): the difference and a factor log2(e) are rounded, and exp2 itself.
        self._logit_error = error + self.u * (4 * self._shift.abs() + 4)
        self._log_probs = torch.log_softmax(logits, 1)
        self._probs = self._log_probs.exp()

    def _form_results(self) -> None:
        vocabulary = gamma(self._weight.shape[0] + 8, self.u)  # sums over it
        probs = self._probs
        self.logprobs = self._log_probs[self._is_target]
        self.entropies = -(probs * self._log_probs).sum(1)
        # dlogprob = (1 - p) dz of the target - sum of p dz of the others. The sum of the others is
        # taken in logarithms to the target's logit.
        others = probs.masked_fill(self._is_target, 0.0)
        self._prob_others = others.sum(1)
        at_target = self._logit_error[self._is_target]
        sums = vocabulary + 4 * self.u * self._largest[:, 0]
        self._odds_error = self._prob_others * (at_target + sums)
        self._odds_error += (others * self._logit_error).sum(1)
        self.logprob_error = self._odds_error + 8 * self.u * self.logprobs.abs()
        # dentropy = - sum of p (log p + entropy) dz
        self._surprise = self._log_probs + self.entropies[:, None]
        self.entropy_error = (probs * self._surprise.abs() * self._logit_error).sum(1)
        mean_shift = (probs * self._shift.abs()).sum(1)
        self.entropy_error += (vocabulary + 16 * self.u) * (1 + mean_shift)
        mean_error = (probs * self._logit_error).sum(1, keepdim=True)
        self._log_prob_errors = (1 - probs) * self._logit_error + mean_error
        self._log_prob_errors += vocabulary + 16 * self.u

    def gradients(
        self,
        grad_logprob: Tensor,
        grad_entropy: Tensor | None = None,
        grad_logprob_error: Tensor | float = 0.0,
    ) -> list[Tensor]:
        """Bounds of dhidden [M, H], dweight [V, H] and dbias [V].

        From the loss's gradients by log-probs and entropies [N], and the former's errors [N].
        """
        if grad_entropy is None:
            grad_entropy = torch.zeros_like(grad_logprob)
        size, error = self._dlogits_error(grad_logprob, grad_entropy, grad_logprob_error)
        over_vocabulary = gamma(self._weight.shape[0] + len(self._x), self.u)
        dhidden = (error + over_vocabulary * size) @ self._weight.abs()
        error = error + gamma(len(self._x) + 8, self.u) * size  # sums over tokens
        return [self._add_to_rows(dhidden), error.T @ self._x.abs(), error.sum(0)]

    def rounded_gradients(
        self, dtype: torch.dtype, grad_logprob: Tensor, grad_entropy: Tensor | None = None
    ) -> list[tuple[Tensor, float]]:
        """dhidden and dweight in fp64, and the relative errors that come of rounding to `dtype`.

        What is rounded are dlogits, which a GEMM in `dtype` takes, and the result.
        """
        dlogits = self._dlogits(grad_logprob, grad_entropy)
        gradients = []
        for exact, rounded in zip(
            self._products_with(dlogits), self._products_with(_round(dlogits, dtype)), strict=True
        ):
            gradients.append((exact, relative_error(_round(rounded, dtype), exact)))
        return gradients

    def _dlogits(self, grad_logprob: Tensor, grad_entropy: Tensor | None) -> Tensor:
        """[N, V] the gradient by the GEMM's products."""
        dlogits = grad_logprob[:, None] * self._logprob_slope()
        if grad_entropy is not None:
            dlogits = dlogits - grad_entropy[:, None] * self._probs * self._surprise
        return dlogits * self._slope / self._temperature

    def _products_with(self, dlogits: Tensor) -> list[Tensor]:
        return [self._add_to_rows(dlogits @ self._weight), dlogits.T @ self._x]

    def _logprob_slope(self) -> Tensor:
        """[N, V] derivative of the target's log-prob by the logits: 1[target] - p."""
        return torch.where(self._is_target, self._prob_others[:, None], -self._probs)

    def _dlogits_error(
        self, grad_logprob: Tensor, grad_entropy: Tensor, grad_logprob_error: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """[N, V] the size of dlogits' two parts, and the error of dlogits."""
        u = self.u
        by_logprob = grad_logprob.abs()[:, None]
        by_entropy = grad_entropy.abs()[:, None]
        slope = self._logprob_slope().abs()
        log_odds = (self.logprobs - self._prob_others.log()).nan_to_num(posinf=0.0)
        at_target = self._probs[self._is_target] * self._odds_error
        at_target = at_target + u * self._prob_others * (8 + log_odds.abs())
        others = self._probs * self._log_prob_errors
        slope_error = torch.where(self._is_target, at_target[:, None], others)
        surprise_error = self._log_prob_errors + self.entropy_error[:, None]
        surprise_error += 8 * u * (1 + self._shift.abs() + self.entropies[:, None])
        size = by_logprob * slope + by_entropy * self._probs * self._surprise.abs()
        error = by_logprob * slope_error
        error += by_entropy * (others * self._surprise.abs() + self._probs * surprise_error)
        error += torch.as_tensor(grad_logprob_error).reshape(-1, 1) * slope
        error += 8 * u * self._probs * (by_logprob + by_entropy)  # they are added before p
        if self._softcap is not None:
            logit_error = self._logit_error + u * (4 * self._shift.abs() + 4 * self._largest)
            softcap_error = 24 * u + 2 * logit_error * self._temperature / self._softcap
            error = error * self._slope + size * softcap_error
            size = size * self._slope
        return size / self._temperature, (error + 16 * u * size) / self._temperature

    def _add_to_rows(self, rows: Tensor) -> Tensor:
        """[N, H] of tokens to [M, H] of hidden rows."""
        return rows.new_zeros(self._rows, rows.shape[1]).index_add_(0, self._row_index, rows)


def _grid(tensor: Tensor) -> float:
    """Largest power of two of which all numbers are multiples. 0 if it is below 2^-40."""
    for exponent in range(41):
        scaled = tensor * 2.0**exponent
        if torch.equal(scaled, scaled.round()):
            return 2.0**-exponent
    return 0.0


def _round(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """To the bits of `dtype`. Scaled before, as the ops scale fp16 gradients."""
    scale = 2.0 ** torch.frexp(tensor.abs().max())[1]
    return (tensor / scale).to(dtype).double() * scale
