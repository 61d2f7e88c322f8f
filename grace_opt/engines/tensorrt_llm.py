"""TensorRT-LLM: `moe_config.load_balancer` names a YAML file.

The file holds `num_slots`, `layer_updates_per_iter` (0: the map stays) and `initial_global_assignments`, which maps the
absolute id of a MoE layer to its list of experts; other keys are rejected. A second file holds the LLM options that
name the first.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grace_opt.engines.engine import Options, replica_choice
from grace_opt.engines.slot_lists import placement_of, slot_lists
from grace_opt.placement import Placement
from grace_opt.plan import Plan

NAME, POLICY = "TensorRT-LLM", "uniform"
SAME_IN_ALL_LAYERS, EXPERT_ONCE_PER_RANK = True, False
FILE, OPTIONS_FILE, FIELD = "load_balancer.yaml", "llm_options.yaml", "initial_global_assignments"


def files(plan: Plan, options: Options, folder: Path) -> Mapping[str, bytes]:
    """The load balancer's file, and the LLM options that name it."""
    lines = [f"num_slots: {plan.placement.num_physical}", "layer_updates_per_iter: 0", f"{FIELD}:"]
    for layer_id, experts in zip(plan.layer_ids, slot_lists(plan.placement), strict=True):
        lines.append(f"  {layer_id}: {json.dumps(experts)}")
    llm = [
        f"tensor_parallel_size: {plan.num_ranks}",
        f"moe_expert_parallel_size: {plan.num_ranks}",
        "enable_attention_dp: true",
        "moe_config:",
        f"  load_balancer: {json.dumps(str(folder.absolute() / FILE))}",
    ]
    return {FILE: ("\n".join(lines) + "\n").encode(), OPTIONS_FILE: ("\n".join(llm) + "\n").encode()}


def read_placement(content: bytes, num_ranks: int, where: str = FILE) -> tuple[tuple[int, ...], Placement]:
    """Absolute layer ids, and the placement.

    Raises:
        ValueError: no such file's content.
    """
    try:
        found: Any = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: truncated or no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict) or not set(found) <= {"num_slots", FIELD, "layer_updates_per_iter"}:
        raise ValueError(f"{where} must hold num_slots, {FIELD} and layer_updates_per_iter, and no other key")
    layers = found.get(FIELD)
    if not isinstance(layers, dict) or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise ValueError(f"{where}: {FIELD} must map absolute layer ids to lists of experts")
    for layer, experts in layers.items():
        if not isinstance(experts, Sequence) or len(experts) != found.get("num_slots"):
            raise ValueError(f"{where}: {FIELD}.{layer} must be a list of num_slots={found.get('num_slots')} experts")
    return tuple(layers), placement_of(list(layers.values()), num_ranks, f"{where}: {FIELD}")


def start(plan: Plan, folder: Path) -> list[str]:
    """The command line."""
    return [
        f"trtllm-serve MODEL --config {folder / OPTIONS_FILE}",
        f"older versions: trtllm-serve MODEL --extra_llm_api_options {folder / OPTIONS_FILE}",
    ]


def ignores(plan: Plan) -> list[str]:
    """What TensorRT-LLM will not do."""
    return [
        *replica_choice(plan, NAME, ("uniform",), "round robin over the copies of an expert, wherever they are"),
        "without attention data parallelism and an all-to-all backend tokens are gathered everywhere: the placement "
        "then changes no traffic, only load",
        "layer_updates_per_iter above 0 would replace the plan while serving: leave it at 0",
    ]
