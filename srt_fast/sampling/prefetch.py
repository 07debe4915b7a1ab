"""The batches of a run, each prepared while the one before it trains: the prompts always, the rollouts where asked for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields

from srt_fast.config import Config
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.sampling.base import PendingRollouts, Sampler, SamplerError, SamplingParams
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.tasks.stream import PromptStream
from srt_fast.types import Prompts, Rollouts


class BatchPrefetcher:
    """Prompts and rollouts, step after step.

    `next()` gives a step's batch. `ahead()` starts to prepare the one after it, in a thread of its own; with
    vllm.one_step_off the engine begins to sample it too, with the weights that it has at the call. `settle()` waits until
    the engine is idle, so that it can take new weights. The order of the prompts and the seeds do not depend on how far
    ahead is prepared: state_dict() is that of a run that prepares nothing.
    """

    def __init__(self, config: Config, stream: PromptStream, policy: Policy, sampler: Sampler):
        self._config, self._stream, self._policy, self._sampler = config, stream, policy, sampler
        self._params = SamplingParams.of_training(config.sampling)
        self.max_prompt = longest_prompt(policy, config.sampling)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._prepared: Future | None = None
        self._sampled: tuple[Prompts, Rollouts | PendingRollouts] | None = None

    def next(self) -> tuple[Prompts, Rollouts]:
        """A step's prompts and their rollouts, sampled now if they have not been."""
        self.settle()
        sampled, self._sampled = self._sampled, None
        if sampled:
            return sampled
        prompts = self._next_prompts()
        return prompts, self._sampler.sample(prompts.token_ids, self._params)

    def ahead(self) -> None:
        """Prepare the batch after the last one that `next` gave."""
        if self._config.vllm.one_step_off:
            prompts = self._next_prompts()
            self._sampled = prompts, self._sampler.start(prompts.token_ids, self._params)
        self._prepared = self._worker.submit(self._prepare)

    def settle(self) -> None:
        """Wait for rollouts that are being sampled. Where the engine fails, their prompts are the next ones again."""
        if self._sampled and isinstance(self._sampled[1], PendingRollouts):
            prompts, pending = self._sampled
            try:
                self._sampled = prompts, pending.result()
            except SamplerError:
                self.load_state_dict({"prompts": prompts.position, "rollouts": None})
                raise

    def again(self) -> None:
        """Give up rollouts that wait: their prompts are the next ones again, to be sampled with other weights."""
        self.settle()
        if self._sampled:
            self.load_state_dict({"prompts": self._sampled[0].position, "rollouts": None})

    def state_dict(self) -> dict:
        """What load_state_dict needs to give the same batches: prompts as a place in the stream, rollouts as they are."""
        self.settle()
        if self._sampled:
            prompts, rollouts = self._sampled
            tensors = {
                field.name: getattr(rollouts, field.name)
                for field in fields(Rollouts)
                if field.name != "prompts"
            }
            return {"prompts": prompts.position, "rollouts": tensors}
        prepared = self._prepared.result() if self._prepared else None
        return {
            "prompts": prepared.position if prepared else self._stream.state_dict(),
            "rollouts": None,
        }

    def load_state_dict(self, state: dict) -> None:
        """What is being prepared is given up."""
        if self._sampled and isinstance(self._sampled[1], PendingRollouts):
            self._sampled[1].cancel()
        if self._prepared:
            self._prepared.result()
        self._prepared = self._sampled = None
        self._stream.load_state_dict(state["prompts"])
        if state["rollouts"]:
            prompts = self._next_prompts()
            tensors = {
                name: tensor.to(self._policy.device) for name, tensor in state["rollouts"].items()
            }
            self._sampled = prompts, Rollouts(**tensors, prompts=prompts.token_ids)

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(cancel_futures=True)

    def _next_prompts(self) -> Prompts:
        prepared, self._prepared = self._prepared, None
        return prepared.result() if prepared else self._prepare()

    def _prepare(self) -> Prompts:
        """The stream's next prompts and their token ids; prompts that are too long are dropped, replaced and counted."""
        wanted, position, kept, dropped = (
            self._config.train.prompts_per_step,
            self._stream.state_dict(),
            [],
            0,
        )
        while len(kept) < wanted:
            for problem in self._stream.next(wanted - len(kept)):
                ids = tokenize_prompt(problem, self._config.task, self._policy.tokenizer)
                if len(ids) <= self.max_prompt:
                    kept.append((problem, ids))
                else:
                    dropped += 1
            if dropped > 20 * wanted and not kept:
                raise ValueError(
                    f"sampling.max_prompt_tokens: expected prompts of at most {self.max_prompt} tokens, "
                    f"got {dropped} longer ones in a row"
                )
        return Prompts(
            problems=[problem for problem, _ in kept],
            token_ids=[ids for _, ids in kept],
            dropped=dropped,
            position=position,
        )
