"""A small mixture-of-experts language model: the one behind the embedded sample.

Decoder only; every layer is attention and a MoE block, each behind a pre-norm and a residual connection. Router,
attention and experts are modules of their own, so that a runtime can replace the experts and keep the rest.

    x = embedding[tokens]
    L times:  x = x + attention(norm(x))
              x = x + experts(norm(x), router(norm(x)))
    logits = norm(x) @ embedding.T

Shape letters beside those of grace_opt: C positions of a sequence, H heads, V vocabulary; here B is the sequences of a
batch, and T = B * C tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class SampleConfig:
    """Sizes of the model; the coefficients of the two router losses are those of OLMoE (arXiv 2409.02060)."""

    vocabulary: int
    num_layers: int = 8
    num_experts: int = 64
    top_k: int = 8
    hidden: int = 128
    ffn: int = 64
    num_heads: int = 4
    rope_base: float = 10_000.0
    balance_coefficient: float = 0.01
    z_coefficient: float = 0.001

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.num_heads):
            raise ValueError(f"hidden must be a multiple of 2 * num_heads = {2 * self.num_heads}, got {self.hidden}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k must lie in 1..num_experts = {self.num_experts}, got {self.top_k}")


class Routed(NamedTuple):
    """What a router decides for T tokens."""

    expert_ids: Tensor  # [T, K] int64, best first
    weights: Tensor  # [T, K], positive, a token's sum to 1
    loss: Tensor  # scalar: load balancing and z-loss, with their coefficients


class Output(NamedTuple):
    """What the model returns for B sequences of C positions."""

    logits: Tensor  # [B, C, V]
    expert_ids: Tensor  # [L, B, C, K] int64, best first
    router_loss: Tensor  # scalar, mean over layers


class Router(nn.Module):
    """Softmax over all experts, then the K largest, scaled to sum to 1."""

    def __init__(self, config: SampleConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = _parameter(config.num_experts, config.hidden, fan_in=config.hidden)

    def forward(self, x_TD: Tensor) -> Routed:
        """Choose for tokens [T, D]."""
        logits_TE = x_TD @ self.weight.T
        probability_TE = logits_TE.softmax(-1)
        top_TK, expert_ids_TK = probability_TE.topk(self.config.top_k)
        # The share of the assignments an expert receives times its mean probability; the sum is 1 if all are equal.
        share_E = torch.bincount(expert_ids_TK.flatten(), minlength=self.config.num_experts) / expert_ids_TK.numel()
        balance = self.config.num_experts * (share_E * probability_TE.mean(0)).sum()
        z = logits_TE.logsumexp(-1).square().mean()
        loss = self.config.balance_coefficient * balance + self.config.z_coefficient * z
        return Routed(expert_ids_TK, top_TK / top_TK.sum(-1, keepdim=True), loss)


class Experts(nn.Module):
    """SwiGLU experts in stacked tensors: `gate`, `up` [E, D, F] and `down` [E, F, D]."""

    def __init__(self, config: SampleConfig) -> None:
        super().__init__()
        E, D, F = config.num_experts, config.hidden, config.ffn
        self.gate = _parameter(E, D, F, fan_in=D)
        self.up = _parameter(E, D, F, fan_in=D)
        self.down = _parameter(E, F, D, fan_in=F * 2 * config.num_layers)

    def forward(self, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Weighted sum of the chosen experts' outputs [T, D]: rows are sorted by expert, multiplied, put back."""
        (T, K), E = expert_ids_TK.shape, self.gate.shape[0]
        order = expert_ids_TK.flatten().argsort(stable=True)
        ends_E = torch.bincount(expert_ids_TK.flatten(), minlength=E).cumsum(0).to(torch.int32)
        rows = x_TD[order // K]
        gate, up = (functional.grouped_mm(rows, weight, offs=ends_E) for weight in (self.gate, self.up))
        out = functional.grouped_mm(functional.silu(gate) * up, self.down, offs=ends_E)
        out_TKD = out[order.argsort()].view(T, K, -1)
        return (out_TKD * weights_TK.unsqueeze(-1)).sum(1)


@dataclass
class KeyValueCache:
    """What one layer's attention remembers of the positions so far.

    Attributes:
        keys, values: [B, H, max_length, D/H], of which the first `length` positions are filled.
        length: positions so far.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(
        cls, config: SampleConfig, num_sequences: int, max_length: int, device: torch.device | str = "cpu"
    ) -> "KeyValueCache":
        """Room for `max_length` positions of every sequence."""
        shape = num_sequences, config.num_heads, max_length, config.hidden // config.num_heads
        return cls(torch.empty(shape, device=device), torch.empty(shape, device=device))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add C positions [B, H, C, D/H]; return the keys and values of all positions so far."""
        before, self.length = self.length, self.length + keys.shape[2]
        assert self.length <= self.keys.shape[2], f"no room for {self.length} positions"
        self.keys[:, :, before : self.length], self.values[:, :, before : self.length] = keys, values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Attention(nn.Module):
    """Causal multi-head attention with rotary position embedding (arXiv 2104.09864)."""

    def __init__(self, config: SampleConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = _parameter(3 * config.hidden, config.hidden, fan_in=config.hidden)
        self.out = _parameter(config.hidden, config.hidden, fan_in=config.hidden * 2 * config.num_layers)

    def forward(self, x_BCD: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Mix every position [B, C, D] with those before it; with a cache, also with those it remembers."""
        (B, C, D), H = x_BCD.shape, self.config.num_heads
        q, k, v = (x_BCD @ self.qkv.T).view(B, C, 3, H, D // H).permute(2, 0, 3, 1, 4)  # [B, H, C, D/H] each
        first = 0 if cache is None else cache.length
        positions_C = torch.arange(first, first + C, device=x_BCD.device)
        q, k = (rotate(t, positions_C, self.config.rope_base) for t in (q, k))
        if cache is None:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = cache.append(k, v)
            seen = torch.arange(cache.length, device=x_BCD.device) <= positions_C.unsqueeze(-1)
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return mixed.transpose(1, 2).reshape(B, C, D) @ self.out.T


class Layer(nn.Module):
    """Attention, then a MoE block."""

    def __init__(self, config: SampleConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.attention = Attention(config)
        self.experts_norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.router = Router(config)
        self.experts = Experts(config)

    def forward(self, x_BCD: Tensor, cache: KeyValueCache | None = None) -> tuple[Tensor, Routed]:
        """The next residual stream [B, C, D], and what the router decided."""
        x_BCD, rows_TD, routed = self.attend_and_route(x_BCD, cache)
        return x_BCD + self.experts(rows_TD, routed.expert_ids, routed.weights).view_as(x_BCD), routed

    def attend_and_route(self, x_BCD: Tensor, cache: KeyValueCache | None = None) -> tuple[Tensor, Tensor, Routed]:
        """All but the experts: the stream [B, C, D] they add to, their rows [T, D], and the router's decision."""
        x_BCD = x_BCD + self.attention(self.attention_norm(x_BCD), cache)
        rows_TD = self.experts_norm(x_BCD).flatten(0, 1)
        return x_BCD, rows_TD, self.router(rows_TD)


class SampleMoE(nn.Module):
    """The language model; the embedding is also the output matrix."""

    def __init__(self, config: SampleConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = _parameter(config.vocabulary, config.hidden, fan_in=config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)

    def forward(self, tokens_BC: Tensor, caches: Sequence[KeyValueCache] | None = None) -> Output:
        """Predict the token after every one of token ids [B, C]; with caches, one a layer, they follow those before."""
        x_BCD = functional.embedding(tokens_BC, self.embedding)
        routed: list[Routed] = []
        cache_of_layer: Sequence[KeyValueCache | None] = caches or [None] * len(self.layers)
        for layer, cache in zip(self.layers, cache_of_layer, strict=True):
            x_BCD, of_layer = layer(x_BCD, cache)
            routed.append(of_layer)
        expert_ids = torch.stack([r.expert_ids for r in routed]).view(-1, *tokens_BC.shape, self.config.top_k)
        return Output(self.norm(x_BCD) @ self.embedding.T, expert_ids, torch.stack([r.loss for r in routed]).mean())


def rotate(x: Tensor, positions_C: Tensor, base: float) -> Tensor:
    """Turn pairs (i, i + n/2) of the last dimension n of x [..., C, n] by position * base^(-2i/n)."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device) / half)
    angle = positions_C.unsqueeze(-1) * frequency
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()), dim=-1)


def _parameter(*shape: int, fan_in: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / fan_in**0.5)
