"""Clusters described in a YAML file: kinds of GPU, ranks, and links between ranks and switches.

format: grace-topology
version: 1
name: my_cluster
gpus: {h100: {flops_per_s: 6.4e14, memory_bytes_per_s: 2.68e12, memory_bytes: 80e9}}
ranks: [{name: a0, node: 0, gpu: h100}, ...]          # in rank order; ranks of a node stand together
links: [{between: [a0, switch_a], bytes_per_s: 272e9, latency_s: 4.5e-6}, ...]   # full duplex; burst_bytes: optional
contention: 0.1                    # optional, see Topology
assumed: latency of the switch     # optional, figures no measurement supports
processors: {cpu0: {cores: 2}}     # optional, for ranks that say processor: cpu0 because they compute on the same one
"""

from pathlib import Path
from typing import Any

import networkx as nx
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from grace_opt.gpu import GPU
from grace_opt.topology import Topology

FORMAT, VERSION = "grace-topology", 1


def read_topology(path: str | Path) -> Topology:
    """Read a cluster file.

    Raises:
        ValueError: what the file holds is not a whole cluster; the message names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"topology file {path} does not exist: give topology.path=FILE (.yaml)")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"it must say format: {FORMAT} and version: {VERSION}")
        assumed = str(content.get("assumed", ""))
        return Topology.from_graph(str(content["name"]), _graph(content), content.get("contention", 0.0), assumed)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no readable YAML ({' '.join(str(error).split())})") from None
    except KeyError as error:
        raise ValueError(f"{path}: field {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _graph(content: dict[Any, Any]) -> nx.Graph:
    gpus = {name: GPU(name=str(name), **_fields(spec, f"gpus.{name}")) for name, spec in content["gpus"].items()}
    processors = content.get("processors", {})
    graph = nx.Graph()
    for index, rank in enumerate(content["ranks"]):
        if rank["gpu"] not in gpus:
            raise ValueError(f"ranks[{index}].gpu is {rank['gpu']!r}; gpus has {', '.join(map(str, gpus))}")
        if rank["name"] in graph:
            raise ValueError(f"ranks[{index}].name {rank['name']!r} occurs twice")
        if type(rank["node"]) is not int or rank["node"] < 0:
            raise ValueError(f"ranks[{index}].node must be a node number from 0, got {rank['node']!r}")
        shared = {}
        if "processor" in rank:
            if rank["processor"] not in processors:
                raise ValueError(
                    f"ranks[{index}].processor is {rank['processor']!r}; processors has {list(processors)}"
                )
            shared = {"processor": f"processor {rank['processor']}", "cores": processors[rank["processor"]]["cores"]}
        graph.add_node(rank["name"], gpu=gpus[rank["gpu"]], node=rank["node"], **shared)
    nodes = [graph.nodes[name]["node"] for name in graph]
    if nodes != sorted(nodes):
        raise ValueError("ranks of a node must stand together, nodes in ascending order")
    for index, link in enumerate(content["links"]):
        a, b = link["between"]
        if graph.has_edge(a, b):
            raise ValueError(f"links[{index}] joins {a} and {b} a second time: give one link with the summed bandwidth")
        unknown = set(link) - {"between", "bytes_per_s", "latency_s", "burst_bytes"}
        if unknown:
            raise ValueError(f"links[{index}] has an unknown field {sorted(unknown)[0]!r}")
        optional = {field: link.get(field, 0.0) for field in ("latency_s", "burst_bytes")}
        graph.add_edge(a, b, bytes_per_s=link["bytes_per_s"], **optional)
    return graph


def _fields(spec: dict[Any, Any], where: str) -> dict[str, Any]:
    """Fields of a GPU: numbers, words in `assumed`, and in `weight_types` numbers again."""
    for field, value in spec.items():
        if field == "name" or field not in GPU.__dataclass_fields__:
            raise ValueError(f"{where} has an unknown field {field!r}")
        if field == "weight_types":
            for weight_type, speeds in value.items():
                _fields(speeds, f"{where}.weight_types.{weight_type}")
        elif field != "assumed" and not isinstance(value, int | float):
            raise ValueError(f"{where}.{field} must be a number, got {value!r}")
    return {str(field): value for field, value in spec.items()}
