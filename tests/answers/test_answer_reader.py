"""AnswerReader with a tokenizer of transformers."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.reader import AnswerReader


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end-of-sequence token, as most models have."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"]
    )
    backend.train_from_iterator([r"the answer is \boxed{\frac{1}{2}}"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_answer_reader_reads_a_packed_batch(tokenizer: PreTrainedTokenizerFast):
    texts = [r"é \boxed{\frac12}", "none", "", r"\boxed{ 0.50 } .", r"\boxed{1} \boxed{2"]
    completions = [
        [*tokenizer.encode(text), tokenizer.eos_token_id] if text else [] for text in texts
    ]
    tokens = torch.tensor([token for completion in completions for token in completion])
    cu_seqlens = torch.tensor([0, *map(len, completions)]).cumsum(0).int()
    reader = AnswerReader(tokenizer, "boxed")
    assert reader.read(tokens, cu_seqlens) == [r"\frac12", None, None, "0.50", "1"]
    keys = reader.keys(tokens, cu_seqlens)
    assert keys.dtype == torch.int64
    assert keys.tolist() == [answer_key("1/2"), 0, 0, answer_key("1/2"), answer_key("1")]
    assert AnswerReader(tokenizer, "whole").read(tokens, cu_seqlens)[1] == "none"  # no "</s>"
    assert reader.keys(tokens[:0], cu_seqlens[:1]).shape == (0,)
    with pytest.raises(ValueError, match=r"cu_seqlens: expected .* last"):
        reader.read(tokens, cu_seqlens[:-1])


def test_an_unknown_rule_is_refused(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(ValueError, match="answer rule: expected one of answer, .* got 'box'"):
        AnswerReader(tokenizer, "box")
