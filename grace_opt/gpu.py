"""What one rank computes with: speeds of a device, for each type of expert weights it was measured with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ROW_VALUES = 7168
SPEEDS = ("flops_per_s", "memory_bytes_per_s", "launch_s", "tile_tokens", "slot_s", "row_s", "least_s", "overlap")


@dataclass(frozen=True)
class GPU:
    """What one rank computes with. Speeds are sustained, not peak.

    Attributes:
        flops_per_s: matrix-product throughput for the experts' data type.
        memory_bytes_per_s: bandwidth at which expert weights are read.
        memory_bytes: device memory.
        launch_s: fixed cost of one grouped expert computation.
        tile_tokens: an expert's tokens are computed in tiles of this many rows.
        slot_s: time of a physical expert of the rank, whether tokens chose it or not; of n, slot_s * n^0.75
            (`simulator.compute`).
        row_s: time of what surrounds the matrix products of an expert (permuting, quantising, activation), per row of
            ROW_VALUES; rows of other sizes in proportion.
        least_s: least time of one grouped expert computation, where the host starts its kernels one by one; the longer
            of both hides all but a little of the other.
        overlap: exponent p with which loading and computing of an expert add up, (load^p + compute^p)^(1/p); infinite
            if the longer of both hides the other wholly.
        copy_bytes_per_s: rate at which rows are put in the order of their destinations, and summed when they return
            (bytes of the rows, once); infinite if that is not to be counted.
        weight_types: for types of expert weights other than bf16 (`fp8`, `mxfp4`, ...), the SPEEDS that differ. Kernels
            of their own for prefill are a type of their own (`fp8_prefill`).
        dense_flops_per_s, dense_memory_bytes_per_s: of dense products (attention, head), where experts' kernels reach
            less; 0 if they do not.
        assumed: which of its figures no measurement supports; shown beside every prediction. "" if none.
    """

    name: str
    flops_per_s: float
    memory_bytes_per_s: float
    memory_bytes: float
    launch_s: float = 0.0
    tile_tokens: int = 1
    copy_bytes_per_s: float = math.inf
    weight_types: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    row_s: float = 0.0
    least_s: float = 0.0
    overlap: float = math.inf
    dense_flops_per_s: float = 0.0
    dense_memory_bytes_per_s: float = 0.0
    assumed: str = ""
    slot_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flops_per_s", "memory_bytes_per_s", "memory_bytes", "tile_tokens"):
            require_positive(f"gpu {self.name}: {name}", getattr(self, name))
        for name in ("dense_flops_per_s", "dense_memory_bytes_per_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"gpu {self.name}: {name} must not be negative, got {getattr(self, name)}")
        if not self.overlap >= 1:
            raise ValueError(f"gpu {self.name}: overlap must be at least 1, got {self.overlap}")
        if not self.copy_bytes_per_s > 0:
            raise ValueError(f"gpu {self.name}: copy_bytes_per_s must be positive, got {self.copy_bytes_per_s}")
        for name in ("launch_s", "slot_s", "row_s", "least_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"gpu {self.name}: {name} must be a time in seconds, got {getattr(self, name)}")
        for weight_type, speeds in self.weight_types.items():
            unknown = sorted(set(speeds) - set(SPEEDS))
            if unknown:
                raise ValueError(
                    f"gpu {self.name}: weight_types.{weight_type}.{unknown[0]} is none of {', '.join(SPEEDS)}"
                )
            self.for_weights(weight_type)  # checks the figures

    def __hash__(self) -> int:
        return hash((self.name, self.flops_per_s, self.memory_bytes_per_s, self.memory_bytes))

    def for_dense(self) -> "GPU":
        """This device with its speeds for dense products."""
        flops_per_s = self.dense_flops_per_s or self.flops_per_s
        memory = self.dense_memory_bytes_per_s or self.memory_bytes_per_s
        return replace(self, flops_per_s=flops_per_s, memory_bytes_per_s=memory)

    def for_weights(self, weight_type: str) -> "GPU":
        """This device with its speeds for a type of weights; unchanged where it knows none for that type."""
        speeds: dict[str, Any] = dict(self.weight_types.get(weight_type, {}))
        return replace(self, weight_types={}, **speeds)


def require_positive(what: str, value: float) -> None:
    """Raise ValueError unless the value is a positive finite number."""
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{what} must be a positive finite number, got {value}")
