"""Where the experts live: per layer and rank, the experts it holds."""

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EMPTY = -1


@dataclass(frozen=True, eq=False)
class Placement:
    """The experts each rank holds, layer by layer. Ranks may hold different numbers; some experts have replicas.

    Attributes:
        slots: int32 [L, R, S], the logical expert in each slot, EMPTY = -1 where a rank holds fewer than S.
            The experts of a rank come first, EMPTY last. Physical expert p of a layer is slot p % S of rank p // S.
        num_experts: E; every expert 0..E-1 occurs at least once in every layer.

    Example: 4 experts on 2 ranks, expert 1 replicated, S = 3::

        Placement.from_lists([[[0, 1], [2, 3, 1]]], num_experts=4).slots
        # [[[0, 1, -1],      rank 0: physical 0, 1 (2 is empty)
        #   [2, 3,  1]]]     rank 1: physical 3, 4, 5; physical 1 and 5 are the copies of expert 1
    """

    slots: NDArray[np.int32]
    num_experts: int

    def __post_init__(self) -> None:
        slots = np.array(self.slots)
        if slots.ndim != 3 or slots.size == 0 or not np.issubdtype(slots.dtype, np.integer):
            raise ValueError(
                f"placement slots must be integers [layers, ranks, slots], got {slots.dtype} {slots.shape}"
            )
        if not 1 <= self.num_experts <= slots[0].size:
            raise ValueError(
                f"placement has {slots[0].size} slots for {self.num_experts} experts: "
                "every expert needs a slot in every layer"
            )
        if slots.min() < EMPTY or slots.max() >= self.num_experts:
            raise ValueError(
                f"placement holds expert ids from {slots.min()} to {slots.max()}; "
                f"expected 0..{self.num_experts - 1}, or -1 for an empty slot"
            )
        empty = slots == EMPTY
        if (empty[..., :-1] & ~empty[..., 1:]).any():
            raise ValueError("placement has an empty slot before a filled one; experts of a rank must come first")
        slots = slots.astype(np.int32)
        slots.setflags(write=False)
        object.__setattr__(self, "slots", slots)
        missing = np.argwhere(self.num_copies == 0)
        if len(missing):
            layer, expert = missing[0]
            raise ValueError(
                f"placement drops expert {expert} in layer {layer} (and {len(missing) - 1} more): "
                "every expert needs a slot in every layer"
            )

    @classmethod
    def from_lists(cls, ranks_of_layer: Sequence[Sequence[Sequence[int]]], num_experts: int) -> "Placement":
        """From the lists [layer][rank] of experts; ragged ranks are padded with EMPTY."""
        if len({len(ranks) for ranks in ranks_of_layer}) != 1:
            raise ValueError("placement must have the same number of ranks in every layer, and at least one layer")
        width = max((len(experts) for ranks in ranks_of_layer for experts in ranks), default=0)
        slots = np.full((len(ranks_of_layer), len(ranks_of_layer[0]), max(width, 1)), EMPTY, np.int32)
        for layer, ranks in enumerate(ranks_of_layer):
            for rank, experts in enumerate(ranks):
                slots[layer, rank, : len(experts)] = experts
        return cls(slots, num_experts)

    @classmethod
    def from_rank_of_expert(cls, rank_LE: NDArray[np.integer], num_ranks: int) -> "Placement":
        """Without replicas: [L, E] rank of each expert; a rank holds its experts in index order."""
        num_experts = rank_LE.shape[1]
        experts_LR = [[np.flatnonzero(rank_E == rank).tolist() for rank in range(num_ranks)] for rank_E in rank_LE]
        return cls.from_lists(experts_LR, num_experts)

    def to_lists(self) -> list[list[list[int]]]:
        """The lists [layer][rank] of experts, without padding."""
        return [[[int(e) for e in rank if e != EMPTY] for rank in layer] for layer in self.slots]

    @property
    def num_layers(self) -> int:
        return int(self.slots.shape[0])

    @property
    def num_ranks(self) -> int:
        return int(self.slots.shape[1])

    @property
    def num_physical(self) -> int:
        """P: slots of a layer over all ranks, empty ones included."""
        return int(self.slots.shape[1] * self.slots.shape[2])

    @property
    def num_copies(self) -> NDArray[np.int64]:
        """[L, E] copies of each expert."""
        keys = self.slots + (self.num_experts + 1) * np.arange(self.num_layers)[:, None, None] + 1
        counts = np.bincount(keys.ravel(), minlength=self.num_layers * (self.num_experts + 1))
        return counts.reshape(self.num_layers, self.num_experts + 1)[:, 1:]

    @property
    def slots_used(self) -> NDArray[np.int64]:
        """[L, R] experts each rank holds."""
        return np.asarray((self.slots != EMPTY).sum(axis=2))

    @property
    def slots_reserved(self) -> NDArray[np.int64]:
        """[L] slots that every rank needs if all have as many: those of the fullest."""
        return np.asarray(self.slots_used.max(axis=1))


def fill(
    ranks: Sequence[MutableSequence[int]], slots_R: Sequence[int], load_E: NDArray[np.integer], layer_id: int
) -> None:
    """Fill the ranks of one layer, in place, up to their slots with replicas.

    A rank takes, one after the other, the expert with most tokens per copy among those it lacks (ties: the lowest id);
    ranks that lack most slots choose first.

    Args:
        load_E: tokens of each expert.
        layer_id: as errors name it.

    Raises:
        ValueError: a rank has no expert left to take.

    Example: ranks [0, 1, 2], [3] of 3 slots and loads 9, 1, 5, 7: the second rank gets 0, then 2; it holds [3, 0, 2].
    """
    copies_E = np.bincount(np.concatenate([np.array(rank, np.int64) for rank in ranks]), minlength=len(load_E))
    for rank in sorted(range(len(ranks)), key=lambda rank: (len(ranks[rank]) - slots_R[rank], rank)):
        while len(ranks[rank]) < slots_R[rank]:
            share_E = load_E / copies_E
            share_E[ranks[rank]] = -1
            expert = int(np.argmax(share_E))
            if share_E[expert] < 0:
                raise ValueError(
                    f"rank {rank} holds all {len(load_E)} experts of layer {layer_id} and {slots_R[rank]} slots are "
                    "needed: another rank holds experts twice; plan with fewer slots"
                )
            ranks[rank].append(expert)
            copies_E[expert] += 1
