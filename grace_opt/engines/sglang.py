"""SGLang: `--init-expert-location FILE.json`.

The file is `{"physical_to_logical_map": [[...], ...]}` and holds no other key. Rows are absolute layers, all of the
model's, dense ones too; a dense layer's row is never read, but must be of full length (here slot % E). Read in SGLang
0.5.23: `sglang/srt/eplb/expert_location.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from grace_opt.engines.engine import Options, replica_choice
from grace_opt.engines.slot_lists import placement_of, slot_array
from grace_opt.placement import Placement
from grace_opt.plan import Plan

NAME, POLICY = "SGLang", "tar"
SAME_IN_ALL_LAYERS, EXPERT_ONCE_PER_RANK = True, False
FILE, FIELD = "expert_location.json", "physical_to_logical_map"


def files(plan: Plan, options: Options, folder: Path) -> Mapping[str, bytes]:
    """The one file.

    Raises:
        ValueError: the plan has layers beyond `num_hidden_layers`.
    """
    num_layers, slots_LP = max(plan.layer_ids) + 1, slot_array(plan.placement)
    if options.num_hidden_layers is not None:
        if options.num_hidden_layers < num_layers:
            raise ValueError(
                f"num_hidden_layers={options.num_hidden_layers}, but the plan has layer {num_layers - 1}: count all "
                "layers of the model, dense ones too"
            )
        num_layers = options.num_hidden_layers
    dense = [slot % plan.num_experts for slot in range(slots_LP.shape[1])]
    row_of_layer = dict(zip(plan.layer_ids, slots_LP.tolist(), strict=True))
    rows = ",\n".join(json.dumps(row_of_layer.get(layer, dense)) for layer in range(num_layers))
    return {FILE: f'{{"{FIELD}": [\n{rows}\n]}}\n'.encode()}


def read_placement(content: bytes, num_ranks: int, layer_ids: Sequence[int], where: str = FILE) -> Placement:
    """The placement of some layers of a file.

    Args:
        layer_ids: absolute ids of the MoE layers, whose rows are read.

    Raises:
        ValueError: no such file's content, or a layer is not there.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: truncated or no JSON ({error})") from None
    if not isinstance(found, dict) or set(found) != {FIELD} or not isinstance(found[FIELD], list):
        raise ValueError(f"{where} must hold {FIELD}, a list of lists, and no other key")
    if not layer_ids or min(layer_ids) < 0 or max(layer_ids) >= len(found[FIELD]):
        raise ValueError(f"{where}: {FIELD} has layers 0..{len(found[FIELD]) - 1}, expected {list(layer_ids)}")
    return placement_of([found[FIELD][layer] for layer in layer_ids], num_ranks, f"{where}: {FIELD}")


def start(plan: Plan, folder: Path) -> list[str]:
    """The command line."""
    ranks, redundant = plan.num_ranks, plan.placement.num_physical - plan.num_experts
    nodes = f" --nnodes {len(plan.ranks_per_node)}" if len(plan.ranks_per_node) > 1 else ""
    return [
        f"python -m sglang.launch_server --model-path MODEL --tp-size {ranks} --ep-size {ranks}{nodes}"
        f" --moe-a2a-backend deepep --ep-num-redundant-experts {redundant} --init-expert-location {folder / FILE}"
    ]


def ignores(plan: Plan) -> list[str]:
    """What SGLang will not do."""
    return [
        *replica_choice(
            plan,
            NAME,
            ("tar",),
            "a copy on the same GPU, else on the same node, else a fair random choice fixed at start",
        ),
        "with --moe-a2a-backend none every rank gathers all tokens: the placement then changes no traffic, only load",
        "--enable-eplb would replace the plan after 1000 iterations: leave it out",
    ]
