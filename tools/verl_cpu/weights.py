"""Weights from verl's trainer into vLLM's CPU build."""

from __future__ import annotations

from torch import Tensor
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension of vLLM's worker, with a reload that vLLM's CPU build can do.

    verl loads into the layers as they are. On a CPU vLLM has packed their weights and removed the
    originals, so the layers have to be set up again: vLLM's layerwise reload does that.
    """

    def update_weights_from_ipc(
        self,
        peft_config: dict | None = None,
        base_sync_done: bool = False,
        use_shm: bool = False,
    ) -> None:
        """Receive all weights of the policy, and load them.

        peft_config must be None. base_sync_done is of adapters only.

        Raises RuntimeError for parameters of the model that got no weights.
        """
        assert peft_config is None, "adapters are not taken over"
        weights: list[tuple[str, Tensor]] = []

        def keep(bucket: list[tuple[str, Tensor]], is_last: bool) -> None:
            # The tensors are views of memory that the trainer takes back.
            weights.extend((name, tensor.clone()) for name, tensor in bucket)

        receiver = BucketedWeightReceiver(self._get_zmq_handle(), self.device, use_shm)
        receiver.receive_weights(keep)
        model = self.model_runner.model
        names = {name for name, _ in model.named_parameters()}
        initialize_layerwise_reload(model)
        missing = names - model.load_weights(weights)
        finalize_layerwise_reload(model, self.model_runner.vllm_config.model_config)
        if missing:
            raise RuntimeError(
                f"expected weights for all parameters, got none for {sorted(missing)[:5]}"
            )
