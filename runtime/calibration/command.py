"""`torchrun ... -m runtime calibrate`: measure this cluster, describe it in a topology file for the simulator."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from grace_opt.atomic import write_text_atomically
from grace_opt.model import MoEModel
from grace_opt.provenance import provenance
from grace_opt.topology_file import FORMAT, VERSION, read_topology
from runtime.calibration.gpu import Computing, measure_computing
from runtime.calibration.links import Line, Links, measure_links
from runtime.group import Group, current_group

ALL_AT_ONCE = 0.85
"""Ranks share a processor if together they compute less than this part of what as many would alone."""


def calibrate(model: MoEModel, output: str, name: str, message_bytes: int, repetitions: int, timeout_s: float) -> None:
    """Measure links and experts on all ranks; rank 0 writes topology.yaml and result.json.

    It never looks at MoE runs: only at exchanges of made-up rows and at experts with the same number of tokens each.

    Args:
        name: of the cluster, in the file.
        message_bytes: the largest message through a link; more if that is fast.
        repetitions: of every measurement; medians count.

    Raises:
        ValueError: ranks that are near each other are not consecutive.
    """
    group = current_group()
    if message_bytes < 8192 or repetitions < 1:
        raise ValueError(f"message_bytes must be at least 8192 and repetitions 1, got {message_bytes}, {repetitions}")

    def say(what: str) -> None:
        if group.rank == 0 and sys.stderr.isatty():
            print(f"measuring {what}", file=sys.stderr)

    links = measure_links(group, message_bytes, repetitions, say)
    say("experts")
    computing = measure_computing(group, links.ranks_per_node, model, message_bytes, repetitions)
    if group.rank == 0:
        folder = Path(output)
        content = describe(name, links, computing)
        write_text_atomically(folder / "topology.yaml", yaml.safe_dump(content, sort_keys=False, width=120))
        read_topology(folder / "topology.yaml")
        write_text_atomically(
            folder / "result.json", json.dumps(_result(group, model, links, computing), indent=1) + "\n"
        )
        print(_summary(links, computing))
        print(f"wrote {folder}/topology.yaml and result.json: use topology=custom topology.path={folder}/topology.yaml")


MEASURED = ("flops_per_s", "memory_bytes_per_s", "memory_bytes", "launch_s", "tile_tokens", "copy_bytes_per_s")


def describe(name: str, links: Links, computing: Computing) -> dict[str, Any]:
    """The content of a topology file."""
    gpu = {field: getattr(computing.gpu, field) for field in MEASURED}
    gpu = {field: value if field == "tile_tokens" else float(f"{value:.4g}") for field, value in gpu.items()}
    ranks, edges = [], []
    for node, size in enumerate(links.ranks_per_node):
        for local in range(size):
            rank = f"node{node}.rank{local}"
            ranks.append({"name": rank, "node": node, "gpu": computing.gpu.name} | _processor(node, links, computing))
            if links.inside is not None and size > 1:
                edges.append(_edge(rank, f"node{node}.switch", links.inside, links.inside.latency_s / 2))
            if links.out_of_node and (size == 1 or not links.shared_card):
                line = links.out_of_node[node]
                edges.append(_edge(rank, "fabric", line, line.latency_s / 2, 1 / size))
        if links.out_of_node and size > 1 and links.shared_card:
            line, inside = links.out_of_node[node], links.inside
            within = inside.latency_s if inside is not None else 0.0
            edges.append(_edge(f"node{node}.switch", "fabric", line, max(line.latency_s - within, 1e-7) / 2))
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "gpus": {computing.gpu.name: gpu},
        "ranks": ranks,
        "links": edges,
        "contention": float(f"{max(links.all_with_all - 1, 0.0):.3g}"),
        "processors": _processors(links, computing),
    }


def _processor(node: int, links: Links, computing: Computing) -> dict[str, str]:
    """What the ranks of a node compute on, if they share it among them or with all others."""
    if computing.cores_of_all < ALL_AT_ONCE * sum(links.ranks_per_node):
        per_node = ALL_AT_ONCE * computing.cores_of_node * len(links.ranks_per_node)
        return {"processor": "all" if computing.cores_of_all < per_node else f"node{node}"}
    return {}


def _processors(links: Links, computing: Computing) -> dict[str, dict[str, float]]:
    cores = {"all": computing.cores_of_all}
    cores |= {f"node{node}": computing.cores_of_node for node in range(len(links.ranks_per_node))}
    used = {name for node in range(len(links.ranks_per_node)) for name in _processor(node, links, computing).values()}
    return {name: {"cores": float(f"{value:.3g}")} for name, value in cores.items() if name in used}


def _edge(a: str, b: str, line: Line, latency_s: float, part: float = 1.0) -> dict[str, Any]:
    """A link of the file; `part` of a node's measured bandwidth and burst if each of its ranks has a card."""
    numbers = {
        "bytes_per_s": line.bytes_per_s * part,
        "latency_s": latency_s,
        "burst_bytes": line.burst_bytes * part,
    }
    return {"between": [a, b], **{key: float(f"{value:.4g}") for key, value in numbers.items()}}


def _result(group: Group, model: MoEModel, links: Links, computing: Computing) -> dict[str, Any]:
    return {
        "command": "calibrate",
        "status": "complete",
        "problem": {"model": model.name, "hidden_size": model.hidden_size, "ffn_size": model.ffn_size},
        "rows": [],
        "ranks_per_node": list(links.ranks_per_node),
        "hosts_started": list(group.ranks_per_node),
        "shared_card": links.shared_card,
        "all_with_all_over_lines": links.all_with_all,
        "inside": None if links.inside is None else asdict(links.inside),
        "out_of_node": [asdict(line) for line in links.out_of_node],
        "out_of_rank": None if links.out_of_rank is None else asdict(links.out_of_rank),
        "computing": asdict(computing),
        **provenance(),
    }


def _summary(links: Links, computing: Computing) -> str:
    lines = [f"nodes of {list(links.ranks_per_node)} ranks"]
    for where, line in (("inside a node", links.inside), *(("between nodes", line) for line in links.out_of_node[:1])):
        if line is not None:
            lines.append(
                f"{where}: {line.latency_s * 1e6:.0f} us (from {line.latency_range_s[0] * 1e6:.0f}, median "
                f"{line.latency_range_s[1] * 1e6:.0f}), {line.bytes_per_s / 1e6:.4g} MB/s, burst "
                f"{line.burst_bytes / 1e3:.3g} kB (points within {line.worst_error:.1%})"
            )
    if links.out_of_node:
        lines.append("ranks of a node share its link" if links.shared_card else "every rank has a link of its own")
        lines.append(f"everyone with everyone takes {links.all_with_all:.2f} of what these lines say")
    gpu = computing.gpu
    lines.append(
        f"experts: launch {gpu.launch_s * 1e6:.0f} us, {gpu.memory_bytes_per_s / 1e9:.3g} GB/s of weights, "
        f"{gpu.flops_per_s / 1e9:.4g} GFLOP/s in tiles of {gpu.tile_tokens} (points within "
        f"{computing.worst_error:.0%}); {computing.cores_of_all:.2g} of {sum(links.ranks_per_node)} ranks at once; "
        f"rows copied at {gpu.copy_bytes_per_s / 1e9:.3g} GB/s"
    )
    return "\n".join(lines)
