"""Which experts the tokens of a forward pass are given to, read by hooks on every MoE layer.

What is read depends on how the classes of a transformers release are laid out::

    experts is one module                its second argument, the experts it computes    all of 5.x; gpt-oss of 4.57
    experts is a list, gate a router     the first thing the router returns              DeepSeek-V2 and V3 of 4.57
    experts is a list, gate a Linear     top-k of the softmax of the gate's output       OLMoE, Mixtral, Qwen of 4.57

DeepSeek's routers add a bias and limit groups, so logits do not tell what they chose. A block of the last row takes the
same top-k of the same softmax itself, right after the hook.
"""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.recording.architectures import Architecture

Keep = Callable[[Any], None]
"""Takes the experts of one layer's tokens, an integer tensor [..., K]."""


def moe_blocks(model: Any) -> dict[int, Any]:
    """Absolute layer id to the block that holds router and experts, for every MoE layer of a causal language model.

    Raises:
        ValueError: there is none, or dense layers stand between them.
    """
    parts = (
        (layer, getattr(module, name, None))
        for layer, module in enumerate(model.model.layers)
        for name in ("mlp", "block_sparse_moe")
    )
    blocks = {layer: part for layer, part in parts if hasattr(part, "experts")}
    if not blocks:
        raise ValueError("none of its layers has experts: there is no routing to record")
    if list(blocks) != list(range(min(blocks), max(blocks) + 1)):
        raise ValueError(
            f"its MoE layers are {', '.join(map(str, blocks))}, with dense ones between: a trace holds layers that "
            "follow one another"
        )
    return blocks


class Routers:
    """Hooks on all MoE layers while in a `with` block; `take` hands over what the last forward pass chose.

    Of each pass only expert ids are held, one or two bytes each, where they were made until `take` fetches them:
    tokens x layers x K of them.

    Args:
        blocks: as `moe_blocks` gives them.
        num_experts, top_k: E and K.
    """

    def __init__(self, blocks: dict[int, Any], architecture: Architecture, num_experts: int, top_k: int) -> None:
        self._blocks, self._architecture, self._top_k = blocks, architecture, top_k
        self._dtype = torch.uint8 if num_experts <= 256 else torch.uint16
        self._chosen: dict[int, list[Tensor]] = {layer: [] for layer in blocks}
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        try:
            for layer, block in self._blocks.items():
                self._hooks.append(_hook(layer, block, self._architecture, self._top_k, self._keeper(layer)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def take(self, num_tokens: int) -> NDArray[np.unsignedinteger]:
        """[num_tokens, L, K] uint8 or uint16, what was chosen since the last call.

        Raises:
            ValueError: a layer's experts were not given each token exactly once.
        """
        layers = []
        for layer, chosen in self._chosen.items():
            rows = sum(len(each) for each in chosen)
            if len(chosen) != 1 or rows != num_tokens:
                raise ValueError(
                    f"layer {layer}: the router gave experts to {rows} tokens in {len(chosen)} calls, expected "
                    f"{num_tokens} in one: this kind of model (kernels, quantisation) is not known to record"
                )
            layers.append(chosen.pop().cpu().numpy())
        return np.stack(layers, axis=1)

    def forget(self) -> None:
        """Drop what an interrupted pass left."""
        for chosen in self._chosen.values():
            chosen.clear()

    def _keeper(self, layer: int) -> Keep:
        def keep(experts: Any) -> None:
            if not isinstance(experts, Tensor) or experts.is_floating_point() or experts.shape[-1] != self._top_k:
                got = (
                    f"{experts.dtype} {list(experts.shape)}" if isinstance(experts, Tensor) else type(experts).__name__
                )
                raise ValueError(
                    f"layer {layer}: expected the ids of {self._top_k} experts a token, got {got}: this kind of model "
                    "(kernels, quantisation) is not known to record"
                )
            self._chosen[layer].append(experts.detach().reshape(-1, self._top_k).to(self._dtype))

        return keep


def _hook(layer: int, block: Any, architecture: Architecture, top_k: int, keep: Keep) -> Any:
    """The hook of one block, by its layout."""
    if not isinstance(block.experts, nn.ModuleList):

        def given(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = [kwargs[name] for name in ("top_k_index", "router_indices") if name in kwargs]
            keep([*args[1:2], *named, None][0])

        return block.experts.register_forward_pre_hook(given, with_kwargs=True)
    if architecture.gate == "logits" and isinstance(block.gate, nn.Linear):

        def of_logits(_: Any, args: Any, logits: Tensor) -> None:
            weights = torch.softmax(logits, dim=1, dtype=torch.float)
            keep(torch.topk(weights, top_k, dim=-1).indices)

        return block.gate.register_forward_hook(of_logits)
    if architecture.gate == "indices" and not isinstance(block.gate, nn.Linear):
        return block.gate.register_forward_hook(lambda _, args, output: keep(output[0]))
    raise ValueError(
        f"layer {layer}: {type(block).__name__} with {type(block.gate).__name__} is a layout of {architecture.title} "
        "that is not known: use another release of transformers (4.57, or 5)"
    )
