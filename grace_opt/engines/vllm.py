"""vLLM: the policy of `vllm_plugin`, and the files of two open pull requests.

vLLM 0.33 reads no placement file; the plan as exported is served by `vllm_plugin`. What is written besides:

    eplb_initial_mapping.jsonl  pull request 41141: one record a line
    initial_expert_map.json     pull request 49572: a list of lists

All count MoE layers from 0. A plan without replicas also works in any vLLM as a permuted checkpoint: `checkpoint`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grace_opt.engines.engine import SERVED, Options, counted_layers, replica_choice
from grace_opt.engines.slot_lists import placement_of, slot_lists
from grace_opt.placement import Placement
from grace_opt.plan import Plan

NAME, POLICY = "vLLM", "uniform"
SAME_IN_ALL_LAYERS, EXPERT_ONCE_PER_RANK = True, False
RECORD_FILE, MAP_FILE = "eplb_initial_mapping.jsonl", "initial_expert_map.json"
MOST_REDUNDANT = 1023
"""vLLM's tables hold at most 1024 copies of an expert."""


def files(plan: Plan, options: Options, folder: Path) -> Mapping[str, bytes]:
    """The two files.

    Raises:
        ValueError: more redundant experts than vLLM takes.
    """
    lists, redundant = slot_lists(plan.placement), plan.placement.num_physical - plan.num_experts
    if redundant > MOST_REDUNDANT:
        raise ValueError(f"vLLM takes at most {MOST_REDUNDANT} redundant experts, the plan has {redundant}")
    record = {
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "num_redundant_experts": redundant,
        "num_slots": plan.placement.num_physical,
        "initial_global_assignments": {str(index): experts for index, experts in enumerate(lists)},
    }
    rows = ",\n".join(json.dumps(experts) for experts in lists)
    return {
        RECORD_FILE: (json.dumps(record) + "\n").encode(),
        MAP_FILE: f"[\n{rows}\n]\n".encode(),
    }


def read_placement(content: bytes, num_ranks: int, where: str = RECORD_FILE) -> Placement:
    """The placement of a record or of a list of lists.

    Raises:
        ValueError: neither, or its numbers contradict each other.
    """
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: truncated or no JSON ({error})") from None
    if isinstance(found, list):
        return placement_of(found, num_ranks, where)
    if not isinstance(found, dict) or (found.get("record_type"), found.get("version")) != ("eplb_initial_mapping", 1):
        raise ValueError(f"{where} must be a list of lists or a record eplb_initial_mapping version 1")
    layers = found.get("initial_global_assignments")
    if not isinstance(layers, dict) or set(layers) != {str(index) for index in range(len(layers))}:
        raise ValueError(f"{where}: initial_global_assignments must map MoE layers 0, 1, ... to lists of experts")
    lists = [layers[str(index)] for index in range(len(layers))]
    placement = placement_of(lists, num_ranks, f"{where}: initial_global_assignments")
    slots, redundant = placement.num_physical, placement.num_physical - placement.num_experts
    if (found.get("num_slots"), found.get("num_redundant_experts")) != (slots, redundant):
        raise ValueError(
            f"{where}: num_slots and num_redundant_experts must be {slots} and {redundant}, as the lists have it, got "
            f"{found.get('num_slots')!r} and {found.get('num_redundant_experts')!r}"
        )
    return placement


def start(plan: Plan, folder: Path) -> list[str]:
    """The environment and command line for the policy, and for the two pull requests."""
    redundant = plan.placement.num_physical - plan.num_experts
    serve = (
        f"vllm serve MODEL --data-parallel-size {plan.num_ranks} --enable-expert-parallel --enable-eplb "
        "--all2all-backend deepep_low_latency --eplb-config "
    )

    def config(**more: Any) -> str:
        return f"'{json.dumps({'num_redundant_experts': redundant, **more})}'"

    mapping = config(initial_mapping_path=str(folder / RECORD_FILE), disable_online_rebalancing=True)
    return [
        f"GRACE_OPT_PLAN={folder.absolute() / SERVED} {serve}{config()}",
        f"with pull request 41141: {serve}{mapping}",
        f"with pull request 49572: {serve}{config(initial_expert_map_path=str(folder / MAP_FILE))}",
    ]


def ignores(plan: Plan) -> list[str]:
    """What vLLM will not do."""
    return [
        *replica_choice(plan, NAME, ("uniform",), "a hash of the token's place modulo copies, wherever they are"),
        counted_layers(plan),
        "with --all2all-backend allgather_reducescatter (vLLM's default) every rank gathers all tokens: the placement "
        "then changes no traffic, only load",
        "the policy's plan is in force from the first rearrangement on: after a quarter of step_interval, 750 forward "
        "passes unless --eplb-config says otherwise; until then experts lie in order",
        "draft layers (multi-token prediction) are balanced by the same policy, and a plan without them is refused "
        "there: serve without them, or plan online",
    ]
