"""OmniInfer (OmniPlacement): `pattern_path` names a `.npy` file.

The file is a 0/1 array [R devices, L MoE layers, E experts]; 1 where a device holds an expert, so none twice. Layers
may differ in their number of copies.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from grace_opt.engines.engine import Options, counted_layers, replica_choice
from grace_opt.npy_bytes import read_npy_integers
from grace_opt.placement import EMPTY, Placement
from grace_opt.plan import Plan

NAME, POLICY = "OmniInfer", "uniform"
SAME_IN_ALL_LAYERS, EXPERT_ONCE_PER_RANK = False, True
FILE = "placement_pattern.npy"


def files(plan: Plan, options: Options, folder: Path) -> Mapping[str, bytes]:
    """The one file; the order of a rank's slots is lost in it."""
    pattern_RLE = np.zeros((plan.num_ranks, plan.placement.num_layers, plan.num_experts), np.int32)
    layer, rank, slot = np.nonzero(plan.placement.slots != EMPTY)
    pattern_RLE[rank, layer, plan.placement.slots[layer, rank, slot]] = 1
    stream = io.BytesIO()
    np.save(stream, pattern_RLE, allow_pickle=False)
    return {FILE: stream.getvalue()}


def read_placement(content: bytes, where: str = FILE) -> Placement:
    """The placement; a rank's experts in order of their ids.

    Raises:
        ValueError: no such array, other values than 0 and 1, an expert nowhere, or devices of a layer differ in size.
    """
    try:
        pattern_RLE = read_npy_integers(content)
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where}: truncated or no .npy array ({' '.join(str(error).split())})") from None
    if pattern_RLE.ndim != 3 or pattern_RLE.size == 0 or not ((pattern_RLE == 0) | (pattern_RLE == 1)).all():
        raise ValueError(f"{where} must be a whole-number array of 0 and 1, [devices, MoE layers, experts]")
    held_LR = pattern_RLE.astype(np.int64).sum(axis=2).T
    if (held_LR != held_LR[:, :1]).any():
        raise ValueError(f"{where}: devices of a layer must hold equally many experts")
    lists = [[np.flatnonzero(row).tolist() for row in pattern_RLE[:, layer]] for layer in range(pattern_RLE.shape[1])]
    try:
        return Placement.from_lists(lists, pattern_RLE.shape[2])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def start(plan: Plan, folder: Path) -> list[str]:
    """Lines of OmniPlacement's configuration file; a relative path would be taken from its own package."""
    return [f"pattern_path: {folder.absolute() / FILE}", "enable_dynamic: False"]


def ignores(plan: Plan) -> list[str]:
    """What OmniInfer will not do."""
    return [
        *replica_choice(plan, NAME, (), "by its own selector, among all copies"),
        counted_layers(plan),
        "it takes no redundant experts together with all-gather communication, under which a placement changes no "
        "traffic, only load",
        "enable_dynamic would replace the plan while serving: leave it off",
    ]
