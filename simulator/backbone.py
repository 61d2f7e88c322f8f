"""Seconds of what surrounds the experts on one rank, from a roofline or from measured tables.

    matrix product   start of a kernel + max(flops / sustained flops, bytes / memory bandwidth); bytes are those of its
                     weights, of what it reads and of what it writes
    scores           the same with the operations of a causal pass, and the cache of every sequence as bytes

Measured times of the same two kinds of kernel come from `simulator.kernel_tables`. Both leave out norms, residual sums
and whatever an engine's host does between kernels.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from grace_opt.backbone import Backbone
from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from simulator.kernel_tables import KernelTables

KERNEL_S = 5e-6
"""Start of a kernel: the smallest products in the tables of A100 and H100."""
SCORES_S = 10e-6
"""Start of the scores: the smallest in the same tables take 5 to 13 us."""
VALUE_BYTES = 2
"""Of activations and cache: bf16."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of a rank.

    Attributes:
        sequences: on this rank.
        tokens: of each sequence that pass through the layers: the prompt in prefill, 1 in decode.
        context: tokens each sequence has in its cache before.
    """

    sequences: float
    tokens: int
    context: int = 0

    @property
    def num_tokens(self) -> float:
        return self.sequences * self.tokens

    @property
    def decodes(self) -> bool:
        return self.tokens == 1 and self.context > 0


@dataclass(frozen=True)
class BackboneTime:
    """Seconds of one forward pass.

    Attributes:
        attention_s, router_s, shared_s: of one MoE layer.
        other_s: of all that is not in MoE layers: dense layers, head.
        measured: from measured tables, not from the roofline.
    """

    attention_s: float
    router_s: float
    shared_s: float
    other_s: float
    measured: bool


class Kernels(Protocol):
    """What times the two kinds of kernel."""

    def product_s(self, tokens: float, inputs: int, outputs: int) -> float:
        """A matrix product [tokens, inputs] x [inputs, outputs]."""
        ...

    def scores_s(self, backbone: Backbone, sequences: float, tokens: int, context: int) -> float:
        """Scores and weighted sums of one layer's attention, mean over its kinds of layer."""
        ...


def backbone_time(model: MoEModel, gpu: GPU, work: Pass, tables: bool = False) -> BackboneTime:
    """Time of one pass on one rank.

    Raises:
        ValueError: the model has no backbone, or a size is longer than what was measured.
        MissingDataError: `tables` are asked for, but none has this device or these heads.
    """
    backbone, hidden = model.backbone, model.hidden_size
    if backbone is None:
        raise ValueError(f"model {model.name} has no backbone: its configuration must give model.backbone")
    kernels: Kernels = (
        KernelTables(gpu.name, backbone.weight_type) if tables else Roofline(gpu.for_dense(), backbone.weight_type)
    )
    attention = sum(kernels.product_s(work.num_tokens, *sizes) for sizes in backbone.attention_products(hidden))
    attention += kernels.scores_s(backbone, work.sequences, work.tokens, work.context)
    dense = _ffn_s(kernels, work.num_tokens, hidden, backbone.dense_ffn_size) if backbone.num_dense_layers else 0.0
    head = kernels.product_s(work.sequences, hidden, backbone.vocab_size)  # of a sequence's last token only
    return BackboneTime(
        attention_s=attention,
        router_s=KERNEL_S + kernels.product_s(work.num_tokens, hidden, model.num_experts),  # and the choice of top-k
        shared_s=_ffn_s(kernels, work.num_tokens, hidden, backbone.shared_ffn_size),
        other_s=backbone.num_dense_layers * (attention + dense) + head,
        measured=tables,
    )


def _ffn_s(kernels: Kernels, tokens: float, hidden: int, width: int) -> float:
    """Gate and up in one product, then down."""
    return kernels.product_s(tokens, hidden, 2 * width) + kernels.product_s(tokens, width, hidden) if width else 0.0


@dataclass(frozen=True)
class Roofline:
    """Kernels that take what operations or bytes take at the sustained speeds of a device."""

    gpu: GPU
    weight_type: str

    def product_s(self, tokens: float, inputs: int, outputs: int) -> float:
        """See Kernels."""
        gpu, weight_bytes = self.gpu.for_weights(self.weight_type), 1 if self.weight_type == "fp8" else 2
        moved = weight_bytes * inputs * outputs + VALUE_BYTES * tokens * (inputs + outputs)
        return KERNEL_S + max(2 * tokens * inputs * outputs / gpu.flops_per_s, moved / gpu.memory_bytes_per_s)

    def scores_s(self, backbone: Backbone, sequences: float, tokens: int, context: int) -> float:
        """See Kernels; a causal token looks at half of its own part, in every other layer within the window."""
        whole, decode = context + (tokens + 1) / 2, tokens == 1 and context > 0
        windows = [whole, min(whole, backbone.window)] if backbone.window else [whole]
        seconds = []
        for looked_at in windows:
            flops = sequences * tokens * backbone.score_flops(looked_at, decode)
            held = context + tokens if looked_at == whole else min(context + tokens, backbone.window + tokens)
            cache = VALUE_BYTES * backbone.cache_values * sequences * held
            seconds.append(max(flops / self.gpu.flops_per_s, cache / self.gpu.memory_bytes_per_s))
        return SCORES_S + float(np.mean(seconds))
