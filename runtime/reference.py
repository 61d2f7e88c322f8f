"""The MoE layer on one device, in the fewest lines: what every distributed execution must equal."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Experts:
    """SwiGLU weights of experts: y = (silu(x @ gate) * (x @ up)) @ down.

    Attributes:
        gate, up: [experts, D, F].
        down: [experts, F, D].
    """

    gate: Tensor
    up: Tensor
    down: Tensor

    def __call__(self, expert: int, x: Tensor) -> Tensor:
        """One expert's output for rows [N, D]."""
        return (functional.silu(x @ self.gate[expert]) * (x @ self.up[expert])) @ self.down[expert]

    def all(self, x: Tensor) -> Tensor:
        """[N, D] sum over all experts, as shared experts are applied."""
        return torch.stack([self(expert, x) for expert in range(len(self.gate))]).sum(0)

    def select(self, experts: Tensor) -> "Experts":
        """The weights of some experts, in this order; one may occur several times."""
        return Experts(self.gate[experts], self.up[experts], self.down[experts])


def route(x: Tensor, router: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, then the K largest, scaled to sum to 1.

    Args:
        x: [T, D] hidden states.
        router: [E, D] weight of the router.

    Returns:
        expert ids int64 [T, K], best first, and their gate weights float32 [T, K].
    """
    weights, expert_ids = (x.float() @ router.float().T).softmax(-1).topk(top_k)
    return expert_ids, weights / weights.sum(-1, keepdim=True)


def moe_layer(
    x: Tensor, expert_ids: Tensor, weights: Tensor, experts: Experts, shared: Experts | None = None
) -> Tensor:
    """[T, D] to [T, D]: the weighted sum of each token's experts, plus all shared experts.

    Args:
        expert_ids, weights: [T, K] the router's choice and its gate weights (see `route`).
    """
    result = torch.zeros_like(x, dtype=torch.float32)
    for expert in torch.unique(expert_ids).tolist():
        token, k = (expert_ids == expert).nonzero(as_tuple=True)
        result.index_add_(0, token, experts(expert, x[token]).float() * weights[token, k].float()[:, None])
    return (result if shared is None else result + shared.all(x).float()).to(x.dtype)
