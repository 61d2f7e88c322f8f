"""What planning needs to know of a mixture-of-experts model: its sizes, and the bytes and flops they imply."""

import math
from dataclasses import dataclass

from grace_opt.backbone import Backbone


@dataclass(frozen=True)
class MoEModel:
    """Sizes of one mixture-of-experts model. Layers are its MoE layers only; dense layers are in `dense_bytes`.

    Attributes:
        name: identifies the model in traces and plans.
        num_layers: MoE layers.
        num_experts: routed experts of a layer.
        top_k: experts a token chooses in a layer.
        hidden_size, ffn_size: widths of the residual stream and of one routed expert.
        bytes_per_value: bytes of one activation value on the wire (2 for bf16).
        bytes_per_weight: bytes of one expert weight (1 for fp8, 0.53125 for mxfp4 with its scales).
        weight_type: of the expert weights (`bf16`, `fp8`, `mxfp4`, ...), as `GPU.weight_types` names it.
        backbone: sizes of what surrounds the experts; None if nobody asks for more than the MoE layers' time.
        num_shared_experts: experts that every token passes, on its home rank; they never travel.
        first_moe_layer: absolute id of the first MoE layer (DeepSeek-V2-Lite starts with one dense layer: 1).
        num_expert_groups: groups of a group-limited router; 1 without.
        dense_bytes: weights outside the routed experts, of which every rank holds a copy.
    """

    name: str
    num_layers: int
    num_experts: int
    top_k: int
    hidden_size: int
    ffn_size: int
    bytes_per_value: float = 2.0
    bytes_per_weight: float = 2.0
    num_shared_experts: int = 0
    first_moe_layer: int = 0
    num_expert_groups: int = 1
    dense_bytes: float = 0.0
    weight_type: str = "bf16"
    backbone: Backbone | None = None

    def __post_init__(self) -> None:
        for field in ("num_layers", "num_experts", "top_k", "hidden_size", "ffn_size", "num_expert_groups"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} must be at least 1, got {getattr(self, field)}")
        for field in ("num_shared_experts", "first_moe_layer", "dense_bytes"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"model.{field} must not be negative, got {getattr(self, field)}")
        for field in ("bytes_per_value", "bytes_per_weight"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"model.{field} must be a positive number of bytes, got {getattr(self, field)}")
        if self.top_k > self.num_experts:
            raise ValueError(f"model.top_k is {self.top_k} but there are only {self.num_experts} experts")
        if self.num_experts > 65536:
            raise ValueError(f"model.num_experts is {self.num_experts}; expert ids have 16 bits (at most 65536)")
        if self.num_experts % self.num_expert_groups:
            raise ValueError(
                f"model.num_expert_groups={self.num_expert_groups} does not divide num_experts={self.num_experts}"
            )

    @property
    def layer_ids(self) -> range:
        """Absolute layer ids of the MoE layers."""
        return range(self.first_moe_layer, self.first_moe_layer + self.num_layers)

    @property
    def token_bytes(self) -> float:
        """Bytes of one row: one token's hidden state on the wire."""
        return self.hidden_size * self.bytes_per_value

    @property
    def expert_bytes(self) -> float:
        """Bytes of one routed expert's weights (gate, up and down projections)."""
        return 3 * self.hidden_size * self.ffn_size * self.bytes_per_weight

    def rank_bytes(self, slots: float) -> float:
        """Bytes of the weights on a rank with so many experts in every layer, or in the mean one."""
        return self.dense_bytes + slots * self.num_layers * self.expert_bytes

    @property
    def expert_flops_per_token(self) -> float:
        """Floating-point operations of one token in one expert: three matrix products, two operations a weight."""
        return 6 * self.hidden_size * self.ffn_size
