"""A model and a device with round figures, for tests of the step's meter."""

from srt_fast.utilization.flops import Attention, ModelCost
from srt_fast.utilization.meter import Limit
from srt_fast.utilization.rates import DeviceRates


def make_limit(weights: int, head_weights: int, *, times_sampling: bool = True) -> Limit:
    """1000 FLOPs and 500 bytes a second, 4 bytes an element. A pair of a query and a key takes
    2 x (3 + 2) = 10 FLOPs and reads 5 elements. No attention without weights.
    """
    layer = Attention(heads=1, kv_heads=1, key_dim=3, value_dim=2, window=None)
    cost = ModelCost(
        weights=weights,
        trained_weights=weights,
        head_weights=head_weights,
        trained_head_weights=head_weights,
        attention=(layer,) if weights else (),
    )
    rates = DeviceRates(flops=1000.0, bandwidth=500.0, device="", product="")
    return Limit(cost=cost, rates=rates, element_bytes=4, times_sampling=times_sampling)
