"""A model with ragged completions, and TRL trainers of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PrinterCallback


@pytest.fixture(scope="session")
def ragged(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with a sixth of its tokens as ends. Its completions have 1 to 6 tokens."""
    folder = str(tmp_path_factory.mktemp("ragged"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.generation_config.eos_token_id = [2, *range(100, 142)]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def make_trainer(ragged: str, tmp_path) -> Callable:
    """A function of a class and of settings: a trainer of the ragged model, or of `model`."""
    trl = pytest.importorskip("trl")
    from support.trl import PROMPTS, token_reward  # imports TRL

    defaults = dict(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        optim="sgd",
        learning_rate=0.4,
        lr_scheduler_type="constant",
        logging_steps=1,
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=6,
        gradient_checkpointing=False,
    )

    def make(
        trainer_type: type,
        model: str | PreTrainedModel = ragged,
        rewards: Callable = token_reward,
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        """options: keyword arguments of the trainer. settings: of GRPOConfig."""
        trainer = trainer_type(
            model,
            rewards,
            trl.GRPOConfig(**defaults | settings),
            PROMPTS,
            PROMPTS,
            processing_class=AutoTokenizer.from_pretrained(ragged),
            **(options or {}),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make
