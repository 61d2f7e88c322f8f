"""vllm-ascend: `expert_map_path` of its EPLB options names a JSON file.

The file is `{"moe_layer_count": L, "layer_list": [{"layer_id", "device_count", "device_list": [{"device_id",
"device_expert": [...]}]}]}`. The place in a list counts, MoE layer by MoE layer; ids are not read. All devices hold
equally many experts, none twice. Read in vllm-ascend 0.23: `vllm_ascend/eplb/core/eplb_utils.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grace_opt.engines.engine import Options, counted_layers, replica_choice
from grace_opt.engines.slot_lists import placement_of
from grace_opt.placement import Placement
from grace_opt.plan import Plan

NAME, POLICY = "vllm-ascend", "uniform"
SAME_IN_ALL_LAYERS, EXPERT_ONCE_PER_RANK = True, True
FILE = "expert_map.json"


def files(plan: Plan, options: Options, folder: Path) -> Mapping[str, bytes]:
    """The one file."""
    layers = [
        {
            "layer_id": index,
            "device_count": plan.num_ranks,
            "device_list": [{"device_id": rank, "device_expert": experts} for rank, experts in enumerate(ranks)],
        }
        for index, ranks in enumerate(plan.placement.to_lists())
    ]
    rows = ",\n".join(json.dumps(layer) for layer in layers)
    return {FILE: f'{{"moe_layer_count": {len(layers)}, "layer_list": [\n{rows}\n]}}\n'.encode()}


def read_placement(content: bytes, where: str = FILE) -> Placement:
    """The placement; layers and devices in the order of the lists.

    Raises:
        ValueError: no such file's content, devices unlike each other, or an expert twice on a device.
    """
    try:
        found: Any = json.loads(content)
        layers = [[device["device_expert"] for device in layer["device_list"]] for layer in found["layer_list"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} must hold layer_list, device_list and device_expert ({error!r})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: truncated or no JSON ({error})") from None
    if not layers or found.get("moe_layer_count") != len(layers):
        raise ValueError(f"{where}: moe_layer_count={found.get('moe_layer_count')!r}, but layer_list has {len(layers)}")
    sizes = {len(device) if isinstance(device, list) else -1 for layer in layers for device in layer}
    if len(sizes) != 1 or -1 in sizes or len({len(layer) for layer in layers}) != 1:
        raise ValueError(f"{where}: device_expert must be equally long lists, on as many devices in every layer")
    for index, layer in enumerate(layers):
        if any(len({str(expert) for expert in device}) != len(device) for device in layer):
            raise ValueError(f"{where}: layer_list[{index}] has an expert twice on a device")
    flat = [[expert for device in layer for expert in device] for layer in layers]
    return placement_of(flat, len(layers[0]), f"{where}: layer_list")


def start(plan: Plan, folder: Path) -> list[str]:
    """The command line."""
    redundant = plan.placement.num_physical - plan.num_experts
    options = {"eplb_config": {"expert_map_path": str(folder / FILE), "num_redundant_experts": redundant}}
    return [
        f"vllm serve MODEL --data-parallel-size {plan.num_ranks} --enable-expert-parallel "
        f"--additional-config '{json.dumps(options)}'"
    ]


def ignores(plan: Plan) -> list[str]:
    """What vllm-ascend will not do."""
    return [
        *replica_choice(plan, NAME, (), "one copy for each EP rank, by its number modulo copies, wherever that is"),
        counted_layers(plan),
        "where tokens are gathered on all ranks the placement changes no traffic, only load",
        "dynamic_eplb would replace the plan while serving: leave it off",
    ]
