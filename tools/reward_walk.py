"""Measures the walk of a rewards tensor: from the reward function that makes it to the loss.

usage: PYTHONPATH=.:kernels python tools/reward_walk.py [-v]

Runs one training step of a random model on the plain vote and watches it. Three things are counted.
Stays are the functions of srt_fast and srt_kernels that hold the tensor when they return, or while
the loss returns: in a variable, alone or inside tuples, lists, dictionaries and dataclasses. Files
are where these functions are. Names are the variables and the fields that hold it.

A tensor that is computed from the rewards counts as the rewards: advantages, for instance. Numbers
(tensors without a dimension) do not. The walk ends where linear_policy_loss returns: what metrics
and logs do with the rewards after it is not counted. -v lists functions and names.

It runs on older versions of the code too, from their folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from srt_fast import Trainer, override, recipes
from srt_fast.quickstart import build_tokenizer

ROOMS = ("/srt_fast/", "/srt_kernels/")
REWARD_FUNCTION = "majority.py"
LOSS = "linear_policy_loss"
DEPTH = 4


class Walk(TorchFunctionMode):
    """Marks the rewards and what is computed from them. `watch` takes the interpreter's events."""

    def __init__(self) -> None:
        super().__init__()
        self.stays: set[tuple[str, str]] = set()
        self.names: set[str] = set()
        self.result: tuple[set[tuple[str, str]], set[str]] = (set(), set())
        self._marked: dict[int, torch.Tensor] = {}  # by address; the tensors stay alive
        self._entered: list[FrameType] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Mark the results of an operation that reads a marked tensor."""
        result = func(*args, **(kwargs or {}))
        is_loss = LOSS in str(func)
        if self._marked and not is_loss and any(True for _ in self._paths([args, kwargs], "")):
            self._mark(result)
        return result

    def watch(self, frame: FrameType, event: str, value: Any) -> None:
        """Look at a function that returns. For sys.setprofile.

        Inside a custom op PyTorch has switched this mode off. So our functions switch it on.
        """
        file = frame.f_code.co_filename
        if event not in ("call", "return") or not any(room in file for room in ROOMS):
            return
        if event == "call":
            if torch._C._len_torch_function_stack() == 0:
                self._entered.append(frame)
                self.__enter__()
            return
        if self._entered and self._entered[-1] is frame:
            self._entered.pop()
            self.__exit__(None, None, None)
        if file.endswith(REWARD_FUNCTION) and frame.f_code.co_name == "__call__":
            self._mark(value.rewards)
        if not self._marked:
            return
        self._look(frame)
        if frame.f_code.co_name == LOSS:
            caller = frame.f_back
            while caller:
                self._look(caller)
                caller = caller.f_back
            self.result = (set(self.stays), set(self.names))

    def _mark(self, value: Any) -> None:
        for tensor in value if isinstance(value, tuple | list) else [value]:
            if not isinstance(tensor, torch.Tensor):
                continue
            if tensor.dim() and tensor.numel() and tensor.is_floating_point():
                self._marked[tensor.data_ptr()] = tensor

    def _look(self, frame: FrameType) -> None:
        """Keep a function and its names if it holds a marked tensor."""
        file = frame.f_code.co_filename
        is_comprehension = frame.f_code.co_name.startswith("<")
        if is_comprehension or not any(room in file for room in ROOMS):
            return
        for variable, value in list(frame.f_locals.items()):
            if variable in ("self", "cls") and not is_dataclass(value):
                continue
            for path in self._paths(value, variable):
                self.stays.add((file, frame.f_code.co_qualname))
                self.names.update(path.split("."))

    def _paths(self, value: Any, path: str, depth: int = 0) -> Iterator[str]:
        """Paths of names from a variable to the marked tensors that it holds."""
        if isinstance(value, torch.Tensor):
            if value.numel() and value.data_ptr() in self._marked:
                yield path
        elif depth < DEPTH:
            if is_dataclass(value) and not isinstance(value, type):
                for field in fields(value):
                    inner = getattr(value, field.name, None)
                    yield from self._paths(inner, f"{path}.{field.name}", depth + 1)
            elif isinstance(value, tuple | list):
                for inner in value:
                    yield from self._paths(inner, path, depth + 1)
            elif isinstance(value, dict):
                for inner in value.values():
                    yield from self._paths(inner, path, depth + 1)


def main() -> None:
    """Run a step, and print the figures and one JSON line."""
    walk = Walk()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(make_config(Path(folder)))
        sys.setprofile(walk.watch)
        trainer.train()
        sys.setprofile(None)
    stays, names = walk.result
    files = {file for file, _ in stays}
    if "-v" in sys.argv:
        root = str(Path.cwd()) + "/"
        print(*sorted(f"{file.removeprefix(root)}: {name}" for file, name in stays), sep="\n")
        print(*sorted(names))
    print(json.dumps({"stays": len(stays), "files": len(files), "names": len(names)}))


def make_config(folder: Path) -> Any:
    """One step of a random model. Random answers always have a gradient."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = recipes.quickstart()
    section = "reward" if hasattr(config, "reward") else "feedback"  # its name before issue 14
    return override(
        config,
        {
            "model.path": str(folder / "model"),
            "run_dir": str(folder / "run"),
            "task.params": {"max_digits": 1},
            "task.answer_rule": "whole",
            "sampling": {"group_size": 4, "max_new_tokens": 3, "engine": "hf"},
            "train": {"steps": 1, "prompts_per_step": 6},
            "evaluation": {"every": 0, "prompts": 4, "samples": 2},
            f"{section}.kind": "majority",
            "monitor": {"every": 0, "prompts": 4, "samples": 2},
            "checkpoint.every": 0,
            "log": {"tensorboard": False},
        },
    )


if __name__ == "__main__":
    main()
