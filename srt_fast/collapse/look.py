"""What the collapse probe measures at one step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Agreeing samples of one look, in two halves of each prompt's samples.

    Worked example: 64 prompts x 4 samples, of which 100 and 90 agree: agreeing (100, 90), samples
    (128, 128), score 190 / 256.
    """

    agreeing: tuple[int, int]
    samples: tuple[int, int]

    @property
    def score(self) -> float:
        """The fraction of the samples that agree."""
        return sum(self.agreeing) / sum(self.samples)


@dataclass(frozen=True)
class Measurement:
    """What the probe shows at one step."""

    look: Look
    kl: float
    """Estimate of KL(start || policy), in nats a token."""
    dissent: float | None
    """Of the prompts with a clear vote of the starting model, the fraction on which the policy
    mostly gives one other answer. None: no prompt has a clear vote."""
