"""Settings of the task."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from srt_fast.config.fields import NonNegative, Table, section

AnswerRule = Literal["answer", "boxed", "tag", "last_number", "whole"]
"""How the final answer is read from a completion. The rules of srt_kernels/answers/extract.py."""


@section("task.")
class TaskConfig:
    """Where prompts come from, how they are worded, and how a final answer is read."""

    kind: Literal["arithmetic", "reasoning_gym", "jsonl", "parquet", "datasets"] = "arithmetic"
    """Source of the prompts: the embedded sums ("arithmetic"), a reasoning-gym dataset, a file
    ("jsonl" or "parquet": its content tells the format, which may also be a JSON array or CSV,
    compressed or not), or a dataset of the `datasets` library."""
    name: str | None = None
    """Name of the dataset (reasoning_gym, datasets), or path of the file or of a folder of files
    (jsonl, parquet). Not used by arithmetic."""
    params: Table = Field(default_factory=dict)
    """Settings of the source: max_digits (arithmetic), the difficulty of a reasoning-gym dataset
    such as min_terms, or arguments of datasets.load_dataset."""
    size: NonNegative = 0
    """Number of training prompts to use. 0: all of them (procedural tasks have no end)."""
    prompt_column: str = "problem"
    """Column that holds the prompt: a text, or a chat as a list of messages, which needs
    task.chat (jsonl, parquet, datasets). a.b is a field of an object."""
    gold_column: str | None = None
    """Column that holds the gold answer, or a list with it (jsonl, parquet, datasets):
    reward_model.ground_truth. None: there are no gold answers, and accuracy is not reported. Only
    reward.kind "oracle" and monitor.labels "gold" use gold answers for anything but metrics."""
    split: str = "train"
    """Split of the dataset to train on (datasets)."""
    eval_name: str | None = None
    """File, or split of the dataset, with held-out prompts (jsonl, parquet, datasets). None: a part
    of the training prompts is held out."""
    test_time: bool = False
    """Test-time training: evaluate on the training prompts (jsonl, parquet, datasets)."""
    template: str = "{prompt}"
    """Wording of the user message or of the raw prompt. {prompt} stands for the task's prompt. Of a
    prompt that is a chat it words the last message."""
    system: str | None = None
    """System message. Needs task.chat. A chat may not have one of its own."""
    chat: bool = False
    """Put the prompt into the tokenizer's chat template."""
    answer_rule: AnswerRule = "answer"
    """Where the final answer is: in the last \\boxed{...} ("boxed"), in the last
    <answer>...</answer> ("tag"), the last number, or the whole text. "answer" takes the first of a
    box, a tag, `#### 5`, "the answer is 5", a letter on its own line, and the last number."""
    verifier: Literal["exact", "task", "math_verify"] = "exact"
    """How metrics compare an answer with the gold answer: by equal canonical forms ("exact"), with
    reasoning-gym's own scorer ("task"), or symbolically with math-verify."""

    @property
    def has_gold_source(self) -> bool:
        """Whether the task can have gold answers. Single rows of a file may still lack one."""
        return self.kind in ("arithmetic", "reasoning_gym") or self.gold_column is not None

    def __post_init__(self) -> None:
        if self.kind != "arithmetic" and not self.name:
            raise ValueError(
                "task.name: expected a dataset name or a file path with "
                f"task.kind={self.kind!r}, got none"
            )
        if self.test_time and (self.eval_name or self.kind in ("arithmetic", "reasoning_gym")):
            raise ValueError(
                "task.test_time: expected a jsonl, parquet or datasets task without eval_name, "
                f"got kind {self.kind!r}, eval_name {self.eval_name!r}"
            )
        if self.template.count("{prompt}") != 1:
            raise ValueError(
                f"task.template: expected {{prompt}} exactly once, got {self.template!r}"
            )
        if self.verifier == "task" and self.kind != "reasoning_gym":
            raise ValueError(
                f"task.verifier: 'task' needs task.kind='reasoning_gym', got kind {self.kind!r}"
            )
        if self.system is not None and not self.chat:
            raise ValueError(
                "task.system: expected task.chat=True with a system message, got chat=False"
            )
