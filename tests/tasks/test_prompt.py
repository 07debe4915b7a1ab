"""Where a prompt becomes tokens: template, chat template, special tokens."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from srt_fast.config import TaskConfig
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.types import Problem

PROBLEM = Problem(id="", prompt="{1}+2=")


@pytest.fixture
def tokenizer():
    """Characters as tokens. Adds a beginning and, as some tokenizers do, an end of sequence."""
    tokens = ["<s>", "</s>", "<unk>", *"0123456789+=QuserAaistnym:{} "]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_the_template_takes_the_prompt_as_it_is_and_no_end_of_sequence(tokenizer):
    token_ids = tokenize_prompt(PROBLEM, TaskConfig(template="Q: {prompt} {}"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(token_ids) == ["<s>", *"Q: {1}+2= {}"]


def test_the_chat_template_has_the_system_message_and_the_prompt(tokenizer):
    config = TaskConfig(chat=True, system="s")
    with pytest.raises(ValueError, match="task.chat: expected a tokenizer with a chat template"):
        tokenize_prompt(PROBLEM, config, tokenizer)
    messages = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}"
    generation_prompt = "{% if add_generation_prompt %}a:{% endif %}"
    tokenizer.chat_template = messages + generation_prompt
    token_ids = tokenize_prompt(PROBLEM, config, tokenizer)
    assert "".join(tokenizer.convert_ids_to_tokens(token_ids)) == "s:s u:{1}+2= a:"
    assert all(type(token_id) is int for token_id in token_ids)
