"""The cases of other graders' bug reports: equal values have one key, different ones two."""

from itertools import combinations

import pytest

from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer
from support.answers import Case, cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_case(case: Case):
    keys = {text: answer_key(read_answer(text, case.rule)) for text, _ in case.completions}
    for text, value in case.completions:
        assert (keys[text] == 0) == (value is None), text
    for (text, value), (other, other_value) in combinations(case.completions, 2):
        assert (keys[text] == keys[other]) == (value == other_value), (text, other)
