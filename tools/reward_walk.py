"""Measures the walk of a rewards tensor: from the reward function that makes it to the loss.

usage: PYTHONPATH=.:kernels python tools/reward_walk.py [-v]

Runs one training step of a random model on the plain vote and watches it. Three things are counted.
Stays are the functions of srt_fast and srt_kernels that hold the tensor when they return, or when
the loss of the last batch returns: in a variable, alone or inside tuples, lists, dictionaries and
dataclasses. Files are where these functions are. Names are the variables and the fields that hold
it. -v lists functions and names.

What is computed from the rewards counts as the rewards, if the loss of a token is computed from it:
advantages, for instance. What metrics, logs and gradients do with them does not count. Tensors
without a dimension do not count either.

It runs on older versions of the code too, from their folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from srt_fast import Trainer, override, recipes
from srt_fast.quickstart import build_tokenizer

ROOMS = ("/srt_fast/", "/srt_kernels/")
REWARD_FUNCTION = "majority.py"
LOSS = ("token_loss", "token_terms")  # a token's loss; the second is its name before issue 14
OP = "linear_policy_loss"
STEP = ("train_step", "_one_step")  # the second is its name before issue 14
DEPTH = 4


class Walk(TorchFunctionMode):
    """Follows the rewards and what is computed from them. `watch` is for sys.setprofile."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[int, torch.Tensor] = {}  # by address; they stay alive
        self._parents: dict[int, set[int]] = defaultdict(set)
        self._holders: dict[tuple[str, str], set[tuple[int, str]]] = defaultdict(set)
        self._holders_until_loss: dict[tuple[str, str], set[tuple[int, str]]] = {}
        self._loss_inputs: set[int] = set()
        self._loss_depth = 0
        self._entered: list[FrameType] = []
        self._is_ours: dict[CodeType, bool] = {}

    def result(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Functions (file, name), and names, that held what the loss is computed from."""
        on_way: set[int] = set()
        pending = list(self._loss_inputs)
        while pending:
            address = pending.pop()
            if address not in on_way:
                on_way.add(address)
                pending.extend(self._parents[address])
        stays: set[tuple[str, str]] = set()
        names: set[str] = set()
        for function, holdings in self._holders_until_loss.items():
            for address, path in holdings:
                if address in on_way:
                    stays.add(function)
                    names.update(path.split("."))
        return sorted(stays), sorted(names)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Follow the results of an operation that reads a followed tensor."""
        result = func(*args, **(kwargs or {}))
        if self._tensors:
            parents = {address for address, _ in self._held([args, kwargs], "")}
            if self._loss_depth:
                self._loss_inputs |= parents
            elif parents:
                self._follow(args[0] if result is None else result, parents)  # None: __setitem__
        return result

    def watch(self, frame: FrameType, event: str, value: Any) -> None:
        """Look at a function that is called or returns. For sys.setprofile.

        Inside a custom op PyTorch has switched this mode off. So our functions switch it on.
        """
        code = frame.f_code
        if event not in ("call", "return") or not self._has_room(code):
            return
        is_loss = code.co_name in LOSS and "advantage" in code.co_varnames[: code.co_argcount]
        if event == "call":
            self._loss_depth += is_loss
            if torch._C._len_torch_function_stack() == 0:
                self._entered.append(frame)
                self.__enter__()
            return
        self._loss_depth -= is_loss
        if self._entered and self._entered[-1] is frame:
            self._entered.pop()
            self.__exit__(None, None, None)
        if code.co_filename.endswith(REWARD_FUNCTION) and code.co_name == "__call__":
            self._follow(value.rewards, set())
        if self._tensors and not code.co_name.startswith("<"):
            self._look(frame)
        if code.co_name == OP:
            caller = frame.f_back
            while caller:
                if self._has_room(caller.f_code):
                    self._look(caller)
                caller = caller.f_back
            self._holders_until_loss = {key: set(held) for key, held in self._holders.items()}
        if code.co_name in STEP:
            sys.setprofile(None)

    def _has_room(self, code: CodeType) -> bool:
        """Whether a function belongs to srt_fast or srt_kernels."""
        if code not in self._is_ours:
            self._is_ours[code] = any(room in code.co_filename for room in ROOMS)
        return self._is_ours[code]

    def _follow(self, value: Any, parents: set[int]) -> None:
        for tensor in value if isinstance(value, tuple | list) else [value]:
            if not isinstance(tensor, torch.Tensor):
                continue
            if tensor.dim() and tensor.numel() and tensor.is_floating_point():
                address = tensor.data_ptr()
                self._tensors[address] = tensor
                self._parents[address] |= parents - {address}

    def _look(self, frame: FrameType) -> None:
        """Keep what the variables of a function hold."""
        function = (frame.f_code.co_filename, frame.f_code.co_qualname)
        for variable, value in list(frame.f_locals.items()):
            if variable not in ("self", "cls") or is_dataclass(value):
                self._holders[function].update(self._held(value, variable))

    def _held(self, value: Any, path: str, depth: int = 0) -> Iterator[tuple[int, str]]:
        """Addresses of the followed tensors that a value holds, and the names that lead there."""
        if isinstance(value, torch.Tensor):
            if value.numel() and value.data_ptr() in self._tensors:
                yield value.data_ptr(), path
        elif depth < DEPTH:
            if is_dataclass(value) and not isinstance(value, type):
                for field in fields(value):
                    inner = getattr(value, field.name, None)
                    yield from self._held(inner, f"{path}.{field.name}", depth + 1)
            elif isinstance(value, tuple | list):
                for inner in value:
                    yield from self._held(inner, path, depth + 1)
            elif isinstance(value, dict):
                for inner in value.values():
                    yield from self._held(inner, path, depth + 1)


def main() -> None:
    """Run a step, and print the figures and one JSON line."""
    walk = Walk()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(make_config(Path(folder)))
        sys.setprofile(walk.watch)
        trainer.train()
    stays, names = walk.result()
    files = {file for file, _ in stays}
    if "-v" in sys.argv:
        root = str(Path.cwd()) + "/"
        print(*(f"{file.removeprefix(root)}: {name}" for file, name in stays), sep="\n")
        print(*names)
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
