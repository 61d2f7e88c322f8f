"""Plans on disk: JSON that a person can read and compare, with a digest of its content."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from grace_opt.atomic import write_text_atomically
from grace_opt.home_rule import HomeRule
from grace_opt.placement import EMPTY, Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing

FORMAT, VERSION = "grace-plan", 1


def write_plan(path: str | Path, plan: Plan) -> None:
    """Write `plan` as JSON, one line per layer and rank, whole or not at all."""
    write_text_atomically(Path(path), plan_to_text(plan))


def plan_to_text(plan: Plan) -> str:
    """What a plan file holds."""
    return _pretty({**_content(plan), "digest": digest(plan)})


def read_plan(path: str | Path) -> Plan:
    """Read a plan and check format, version, fields and digest.

    Raises:
        ValueError: what the file holds is not a whole plan; the message names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"plan file {path} does not exist: give plan=FILE, written by `grace-opt plan`")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: truncated or no JSON ({error})") from None
    return plan_from_text(text, str(path))


def plan_from_text(text: str, where: str = "plan") -> Plan:
    """The plan that a plan file's text holds; raises ValueError as `read_plan`, naming `where`."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"format must be {FORMAT!r} version {VERSION}, got none")
        if content.get("format") != FORMAT or (type(content.get("version")), content.get("version")) != (int, VERSION):
            found = f"{content.get('format')!r} version {content.get('version')!r}"
            raise ValueError(f"format must be {FORMAT!r} version {VERSION}, got {found}")
        plan = _plan(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: truncated or no JSON ({error})") from None
    except KeyError as error:
        raise ValueError(f"{where}: field {error} is missing") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None
    if content.get("digest") != _digest(content):
        raise ValueError(
            f"{where}: digest does not match the content; the file was edited or damaged. "
            "Write it again with `grace-opt plan`"
        )
    return plan


def digest(plan: Plan) -> str:
    """SHA-256 of the plan's decisions (all but provenance), equal for equal plans on every machine."""
    return _digest(_content(plan))


def _digest(content: dict[str, Any]) -> str:
    """Of the content as it stands in the file, so that an edit which reads back as the same plan shows as well."""
    decisions = {key: value for key, value in content.items() if key not in ("provenance", "digest")}
    canonical = json.dumps(decisions, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _content(plan: Plan) -> dict[str, Any]:
    weights = plan.routing.weights
    layers: list[dict[str, Any]] = []
    for index, (layer_id, ranks) in enumerate(zip(plan.layer_ids, plan.placement.to_lists(), strict=True)):
        layers.append({"layer": layer_id, "ranks": ranks})
        if weights is not None:
            layers[-1]["weights"] = [
                weights[index, rank, : len(experts)].tolist() for rank, experts in enumerate(ranks)
            ]
    sizes = plan.ranks_per_node
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": plan.model,
        "num_experts": plan.num_experts,
        "topology": {"num_nodes": len(sizes), "ranks_per_node": sizes[0] if len(set(sizes)) == 1 else list(sizes)},
        "layers": layers,
        "routing": {"policy": plan.routing.policy},
        **({} if plan.homes is None else {"homes": asdict(plan.homes)}),
        "provenance": dict(plan.provenance),
    }


def _plan(content: dict[str, Any]) -> Plan:
    layers, topology = content["layers"], content["topology"]
    _require_expert_lists(layers)
    num_experts = content["num_experts"]
    if type(num_experts) is not int:
        raise ValueError(f"num_experts must be a whole number, got {num_experts!r}")
    placement = Placement.from_lists([layer["ranks"] for layer in layers], num_experts)
    if not isinstance(content.get("provenance", {}), dict):
        raise ValueError("provenance must be an object")
    weights = None
    if any("weights" in layer for layer in layers):
        weights = np.zeros(placement.slots.shape)
        for index, layer in enumerate(layers):
            for rank, (values, experts) in enumerate(zip(layer["weights"], layer["ranks"], strict=True)):
                if len(values) != len(experts):
                    raise ValueError(f"layers[{index}].weights[{rank}] must hold one weight per expert of the rank")
                weights[index, rank, : len(values)] = values
    return Plan(
        str(content["model"]),
        tuple(layer["layer"] for layer in layers),
        _ranks_per_node(topology, placement.num_ranks),
        placement,
        Routing(content["routing"]["policy"], weights),
        content.get("provenance", {}),
        _home_rule(content["homes"]) if "homes" in content else None,
    )


def _home_rule(content: Any) -> HomeRule:
    names = {field.name for field in fields(HomeRule)}
    if not isinstance(content, dict) or set(content) != names:
        raise ValueError(f"homes must hold {', '.join(sorted(names))}, got {content!r}")
    numbers = [value for name, value in content.items() if name != "first_tokens"]
    if not all(type(value) in (int, float) for value in numbers) or type(content["first_tokens"]) not in (
        int,
        type(None),
    ):
        raise ValueError(f"homes must hold numbers, got {content!r}")
    return HomeRule(**content)


def _ranks_per_node(topology: dict[str, Any], num_ranks: int) -> tuple[int, ...]:
    nodes, sizes = topology["num_nodes"], topology["ranks_per_node"]
    if type(nodes) is not int or not 1 <= nodes <= num_ranks:
        raise ValueError(f"topology.num_nodes must be a whole number from 1 to the {num_ranks} ranks, got {nodes!r}")
    sizes = sizes if isinstance(sizes, list) else [sizes] * nodes
    if len(sizes) != nodes or not all(type(size) is int for size in sizes):
        raise ValueError(f"topology.ranks_per_node must be a whole number or {nodes} of them, got {sizes!r}")
    return tuple(sizes)


def _require_expert_lists(layers: Any) -> None:
    if not isinstance(layers, list) or not layers:
        raise ValueError("layers must be a list with at least one layer")
    for index, layer in enumerate(layers):
        ranks = layer["ranks"]
        if type(layer["layer"]) is not int:
            raise ValueError(f"layers[{index}].layer must be an absolute layer id, got {layer['layer']!r}")
        if not isinstance(ranks, list) or not all(isinstance(experts, list) for experts in ranks):
            raise ValueError(f"layers[{index}].ranks must be a list of lists of expert ids")
        if not all(type(e) is int and e > EMPTY for experts in ranks for e in experts):
            raise ValueError(f"layers[{index}].ranks must hold expert ids (whole numbers from 0)")


def _pretty(content: dict[str, Any]) -> str:
    """JSON with one line for each rank's experts, so that a diff shows what moved."""
    text = json.dumps({**content, "layers": []}, indent=1)
    blocks = []
    for layer in content["layers"]:
        parts = [f'"layer": {layer["layer"]}']
        for key in ("ranks", "weights"):
            if key in layer:
                rows = ",\n    ".join(json.dumps(row) for row in layer[key])
                parts.append(f'"{key}": [\n    {rows}\n   ]')
        blocks.append("  {" + ",\n   ".join(parts) + "}")
    return text.replace('"layers": []', '"layers": [\n' + ",\n".join(blocks) + "\n ]", 1) + "\n"
