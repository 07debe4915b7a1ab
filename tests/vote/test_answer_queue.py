"""AnswerQueue: with other processes as without, in the same order."""

import pytest

from srt_fast.vote import answers
from srt_fast.vote.answers import AnswerQueue, with_form
from srt_kernels.answers.extract import read_answer


def test_many_texts_are_read_by_processes_in_their_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "FEW", 10)
    monkeypatch.setattr(answers, "CHUNK", 7)
    monkeypatch.setattr(answers.os, "cpu_count", lambda: 3)
    received = []
    queue = AnswerQueue("answer", lambda owner, answer: received.append((owner, answer)))
    texts = [f"So it is {number}." if number % 5 else "nothing" for number in range(200)]
    for owner in range(50):
        queue.add(owner, texts[4 * owner : 4 * owner + 4])
    assert len(received) < 200  # some are still on their way
    queue.finish()
    read = [read_answer(text, "answer") for text in texts]
    assert received == [(i // 4, answer) for i, answer in enumerate(read)]
    assert queue.with_forms(read) == [with_form(answer) for answer in read]
    queue.close()
