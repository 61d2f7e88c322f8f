"""Forward passes that several ranks recorded: put in order, counted once, folded onto logical experts."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from grace_opt.model import MoEModel

Item = TypeVar("Item")


def by_pass(items: Iterable[tuple[int, int, Item]]) -> list[list[tuple[int, Item]]]:
    """(pass, rank, item) to the (rank, item) pairs of each pass, both in ascending order.

    Raises:
        ValueError: one rank recorded a pass twice.
    """
    passes: dict[int, dict[int, Item]] = {}
    for number, rank, item in items:
        ranks = passes.setdefault(number, {})
        if rank in ranks:
            raise ValueError(
                f"rank {rank} recorded pass {number} twice: give files of one recording only (import several apart, "
                "and merge them with source=own)"
            )
        ranks[rank] = item
    ordered = [sorted(passes[number].items(), key=lambda pair: pair[0]) for number in sorted(passes)]
    most = max(map(len, ordered), default=0)
    short = sum(len(ranks) < most for ranks in ordered)
    if short:
        warnings.warn(f"{short} of {len(ordered)} passes lack a rank of {most}: files are missing?", stacklevel=2)
    return ordered


def fold(counts_LP: NDArray[Any], logical_LP: NDArray[Any], num_experts: int) -> NDArray[np.int64]:
    """[L, E] counts of logical experts, from those of their physical copies."""
    counts_LE = np.zeros((len(counts_LP), num_experts), np.int64)
    np.add.at(counts_LE, (np.arange(len(counts_LP))[:, None], logical_LP), counts_LP)
    return counts_LE


def check_map(logical_LP: NDArray[Any], model: MoEModel, field: str) -> NDArray[np.int64]:
    """The map [layers, P] from physical to logical experts, if it can be one of this model."""
    if logical_LP.ndim != 2 or not np.issubdtype(logical_LP.dtype, np.integer) or not logical_LP.size:
        raise ValueError(f"{field} must be integers [layers, physical experts], got {logical_LP.shape}")
    if logical_LP.min() < 0 or logical_LP.max() + 1 != model.num_experts:
        raise ValueError(
            f"{field} names experts {logical_LP.min()} to {logical_LP.max()}, but model {model.name} has "
            f"{model.num_experts} experts: another model? give model=NAME"
        )
    return logical_LP.astype(np.int64)


def distinct(choices: Iterable[tuple[int, NDArray[Any]]]) -> Iterator[tuple[int, NDArray[Any]]]:
    """The ranks of one pass without those that recorded the very same choices.

    Ranks that share attention see the same tokens and write them down each; ranks with attention of their own do not.
    """
    seen: set[bytes] = set()
    for rank, ids in choices:
        content = hashlib.blake2b(f"{ids.shape}".encode() + np.ascontiguousarray(ids).tobytes()).digest()
        if content not in seen:
            yield rank, ids
        seen.add(content)


def warn_of_passes_as_sequences() -> None:
    """Say what a recording without request ids does to a split."""
    warnings.warn(
        "the recording names no requests: the tokens of a rank in one pass are a sequence, so the fit and the held-out "
        "part share requests, and what is held out looks better than it is",
        stacklevel=2,
    )
