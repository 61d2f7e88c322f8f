"""What surrounds the routed experts: attention, dense and shared feed-forward parts, routers, embedding and head."""

import math
from dataclasses import dataclass

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0}


@dataclass(frozen=True)
class Backbone:
    """Sizes from a model's published configuration; every rank holds all of it (data-parallel attention).

    Attributes:
        num_heads, num_kv_heads, head_size: of attention. With latent attention (MLA) head_size is that of queries and
            keys without their rotary part, and of values.
        vocab_size: rows of embedding and head.
        num_dense_layers, dense_ffn_size: layers without experts, and the width of their feed-forward part.
        shared_ffn_size: width of a MoE layer's shared experts together; 0 if it has none.
        kv_rank, q_rank, rope_size: of MLA: widths of the compressed keys and values, of compressed queries (0: queries
            are not compressed), and of the rotary part; kv_rank 0 means ordinary attention.
        window: tokens that every other layer's attention looks back at most; 0 for all of them.
        tied: embedding and head are one matrix.
        weight_type: of all these weights, `bf16` or `fp8`.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    num_dense_layers: int = 0
    dense_ffn_size: int = 0
    shared_ffn_size: int = 0
    kv_rank: int = 0
    q_rank: int = 0
    rope_size: int = 0
    window: int = 0
    tied: bool = False
    weight_type: str = "bf16"

    def __post_init__(self) -> None:
        for field in ("num_heads", "num_kv_heads", "head_size", "vocab_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.backbone.{field} must be at least 1, got {getattr(self, field)}")
        for field in (
            "num_dense_layers",
            "dense_ffn_size",
            "shared_ffn_size",
            "kv_rank",
            "q_rank",
            "rope_size",
            "window",
        ):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"model.backbone.{field} must not be negative, got {getattr(self, field)}")
        if self.weight_type not in WEIGHT_BYTES:
            raise ValueError(
                f"model.backbone.weight_type must be one of {', '.join(WEIGHT_BYTES)}, got {self.weight_type!r}"
            )

    @property
    def bytes_per_weight(self) -> float:
        return WEIGHT_BYTES[self.weight_type]

    def attention_products(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the matrices of one layer's projections.

        MLA in decode multiplies queries and outputs with the last but one instead of keys and values (arXiv 2405.04434,
        section 2.1.2): the same weights and operations.
        """
        if not self.kv_rank:
            values = self.num_heads * self.head_size
            return (hidden, values + 2 * self.num_kv_heads * self.head_size), (values, hidden)
        queries = self.num_heads * (self.head_size + self.rope_size)
        query = ((hidden, self.q_rank), (self.q_rank, queries)) if self.q_rank else ((hidden, queries),)
        keys = (hidden, self.kv_rank + self.rope_size), (self.kv_rank, self.num_heads * 2 * self.head_size)
        return (*query, *keys, (self.num_heads * self.head_size, hidden))

    def attention_weights(self, hidden: int) -> int:
        """Weights of one layer's projections."""
        return sum(inputs * outputs for inputs, outputs in self.attention_products(hidden))

    @property
    def cache_values(self) -> int:
        """Values one token leaves in one layer's cache."""
        return self.kv_rank + self.rope_size if self.kv_rank else 2 * self.num_kv_heads * self.head_size

    def score_flops(self, looked_at: float, decode: bool = False) -> float:
        """Operations of one token's scores and weighted sum over so many tokens, in one layer.

        In decode the heads of MLA look at the compressed keys and values themselves, which are wider.
        """
        width = 2 * (self.kv_rank if decode and self.kv_rank else self.head_size) + self.rope_size
        return 2 * self.num_heads * looked_at * width

    def num_weights(self, hidden: int, num_moe_layers: int, num_experts: int) -> int:
        """All weights outside the routed experts, norms and biases left out."""
        layers = num_moe_layers + self.num_dense_layers
        return (
            layers * self.attention_weights(hidden)
            + self.num_dense_layers * 3 * hidden * self.dense_ffn_size
            + num_moe_layers * hidden * (3 * self.shared_ffn_size + num_experts)
            + (1 if self.tied else 2) * self.vocab_size * hidden
        )
