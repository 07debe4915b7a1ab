"""Masks over the lanes of a program. A lane reads one rollout, byte by byte."""

# The types of jit functions are not those of their calls.
# pyright: reportOperatorIssue=false

import triton
import triton.language as tl

from srt_kernels.answers.kernel import constants as const


@triton.jit
def any_lane(mask):
    return tl.max(mask.to(tl.int32), 0) > 0


@triton.jit
def is_letter(char):
    lower = char | const.CASE_BIT
    return (lower >= const.A) & (lower <= const.Z)


@triton.jit
def is_digit(char):
    return (char >= const.ZERO) & (char <= const.NINE)
