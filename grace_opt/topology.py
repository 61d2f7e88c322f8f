"""The machine: ranks, the nodes they stand in, the links between them, and the fixed route of every pair of ranks."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from grace_opt.gpu import GPU, require_positive


@dataclass(frozen=True, eq=False)
class Topology:
    """Ranks on nodes, joined by directed links of known capacity, with one fixed route per ordered pair of ranks.

    Attributes:
        name: for reports.
        gpus: the device of each rank.
        node_of_rank: int64 [R]; ranks of a node are consecutive and nodes are numbered in order.
        link_names: (from, to) of each directed link.
        link_bytes_per_s: float64 [links].
        routes: sparse [links, R * R]; column source * R + destination holds 1 on the links of that route.
        latency_s: float64 [R, R], sum of link latencies along the route; 0 on the diagonal.
        link_burst_bytes: float64 [links], bytes that pass at once after a pause, as through a token bucket; None for 0.
        contention: by how much an exchange that keeps all links of a kind equally busy takes longer than one alone.
        processor_of_rank: int64 [R], the processor a rank computes on; None if each has one of its own (its GPU).
        cores: float64 [processors], how many ranks can compute on each at full speed at once; None for 1.
        assumed: which of its figures no measurement supports; shown beside every prediction. "" if none.

    Example: two nodes of two GPUs behind a switch each; cross-node routes share their node's link to the spine::

        Topology.two_level("demo", gpu, num_nodes=2, ranks_per_node=2, ...).node_of_rank   # [0, 0, 1, 1]
    """

    name: str
    gpus: tuple[GPU, ...]
    node_of_rank: NDArray[np.int64]
    link_names: tuple[tuple[str, str], ...]
    link_bytes_per_s: NDArray[np.float64]
    routes: sparse.csr_array
    latency_s: NDArray[np.float64]
    link_burst_bytes: NDArray[np.float64] | None = None
    contention: float = 0.0
    processor_of_rank: NDArray[np.int64] | None = None
    cores: NDArray[np.float64] | None = None
    assumed: str = ""

    def __post_init__(self) -> None:
        nodes = np.asarray(self.node_of_rank, np.int64)
        if len(nodes) != len(self.gpus) or len(nodes) == 0:
            raise ValueError(f"topology {self.name} has {len(self.gpus)} gpus but {len(nodes)} node numbers")
        if nodes[0] != 0 or not np.isin(np.diff(nodes), (0, 1)).all():
            raise ValueError(f"topology {self.name}: ranks of a node must be consecutive and nodes numbered 0, 1, ...")
        if not 0 <= self.contention < math.inf:
            raise ValueError(f"topology {self.name}: contention must not be negative, got {self.contention}")
        words = [f"{gpu.name}: {gpu.assumed}" for gpu in dict.fromkeys(self.gpus) if gpu.assumed]
        new = [word for word in words if word not in self.assumed]
        object.__setattr__(self, "assumed", "; ".join(filter(None, [self.assumed, *new])))
        if self.link_burst_bytes is None:
            object.__setattr__(self, "link_burst_bytes", np.zeros(len(self.link_names)))
        links = (len(self.link_names),)
        shapes = {"link_bytes_per_s": links, "link_burst_bytes": links, "latency_s": (len(nodes), len(nodes))}
        for field, shape in shapes.items():
            array = np.array(getattr(self, field), np.float64)
            if array.shape != shape or not np.isfinite(array).all() or (array < 0).any():
                raise ValueError(
                    f"topology {self.name}: {field} must be {list(shape)} numbers, finite and not negative"
                )
            array.setflags(write=False)
            object.__setattr__(self, field, array)
        self._check_processors()
        nodes = nodes.copy()
        nodes.setflags(write=False)
        object.__setattr__(self, "node_of_rank", nodes)

    def _check_processors(self) -> None:
        given = np.arange(len(self.gpus)) if self.processor_of_rank is None else self.processor_of_rank
        processor = np.array(given, np.int64)
        cores = np.array(np.ones(processor.max() + 1) if self.cores is None else self.cores, np.float64)
        if processor.shape != (len(self.gpus),) or processor.min() < 0 or processor.max() >= len(cores):
            raise ValueError(f"topology {self.name}: processor_of_rank must name one of {len(cores)} for every rank")
        if not np.isfinite(cores).all() or (cores <= 0).any():
            raise ValueError(f"topology {self.name}: cores of a processor must be positive, got {cores.tolist()}")
        for field, array in (("processor_of_rank", processor), ("cores", cores)):
            array.setflags(write=False)
            object.__setattr__(self, field, array)

    @property
    def num_ranks(self) -> int:
        return len(self.gpus)

    @property
    def num_nodes(self) -> int:
        return int(self.node_of_rank[-1]) + 1

    @property
    def ranks_per_node(self) -> tuple[int, ...]:
        """Ranks of each node."""
        return tuple(int(n) for n in np.bincount(self.node_of_rank))

    @property
    def memory_bytes(self) -> NDArray[np.float64]:
        """[R] device memory of each rank."""
        return np.array([gpu.memory_bytes for gpu in self.gpus])

    @classmethod
    def from_graph(cls, name: str, graph: nx.Graph, contention: float = 0.0, assumed: str = "") -> "Topology":
        """From a graph of GPUs and switches whose edges are full-duplex links.

        Vertices that are GPUs have attributes `gpu` (a GPU), `node` (a number) and perhaps `processor` (the name of one
        that ranks share) with its `cores`; all others are switches. Edges have `bytes_per_s` (each direction),
        `latency_s` and perhaps `burst_bytes`. Ranks are GPUs by node, then in order of insertion. A route is the path
        of least latency (then fewest links) that passes through switches only, or through GPUs of the sender's node
        that have the attribute `forwards`.

        Raises:
            ValueError: a link without positive finite bandwidth, or two GPUs without a route.
        """
        ranks = sorted((v for v, d in graph.nodes(data=True) if "gpu" in d), key=lambda v: graph.nodes[v]["node"])
        if not ranks:
            raise ValueError(f"topology {name} has no GPU")
        links = _directed_links(name, graph)
        link_index = {ends: i for i, ends in enumerate(links)}
        rank_of_vertex = {v: r for r, v in enumerate(ranks)}
        latency_RR = np.zeros((len(ranks), len(ranks)))
        rows, columns = [], []
        for source, start in enumerate(ranks):
            for end, path in _routes_from(graph, start).items():
                if end == start or end not in rank_of_vertex:
                    continue
                pair = source * len(ranks) + rank_of_vertex[end]
                hops = list(pairwise(path))
                rows += [link_index[hop] for hop in hops]
                columns += [pair] * len(hops)
                latency_RR[source, rank_of_vertex[end]] = sum(graph.edges[hop]["latency_s"] for hop in hops)
        reached = np.eye(len(ranks), dtype=bool).ravel()
        reached[columns] = True
        if not reached.all():
            source, end = divmod(int(np.argmin(reached)), len(ranks))
            raise ValueError(f"topology {name} has no route from {ranks[source]} to {ranks[end]}: add a link")
        names = [graph.nodes[v].get("processor", v) for v in ranks]
        processors = list(dict.fromkeys(names))
        cores = {name: graph.nodes[v].get("cores", 1.0) for v, name in zip(ranks, names, strict=True)}
        routes = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(links), len(ranks) ** 2))
        return cls(
            name,
            tuple(graph.nodes[v]["gpu"] for v in ranks),
            np.unique([graph.nodes[v]["node"] for v in ranks], return_inverse=True)[1],
            tuple((str(a), str(b)) for a, b in links),
            np.array([graph.edges[ends]["bytes_per_s"] for ends in links], np.float64),
            routes,
            latency_RR,
            np.array([graph.edges[ends].get("burst_bytes", 0.0) for ends in links], np.float64),
            contention,
            np.array([processors.index(name) for name in names]),
            np.array([cores[name] for name in processors], np.float64),
            assumed,
        )

    @classmethod
    def two_level(
        cls,
        name: str,
        gpu: GPU,
        num_nodes: int,
        ranks_per_node: int,
        intra_bytes_per_s: float,
        intra_latency_s: float,
        inter_bytes_per_s: float = math.inf,
        inter_latency_s: float = 0.0,
        nic_of: str = "rank",
        assumed: str = "",
    ) -> "Topology":
        """Equal nodes: a switch joins the GPUs of a node; one non-blocking fabric joins the nodes.

        Args:
            intra_bytes_per_s, intra_latency_s: per GPU and direction inside a node, and latency of such a transfer.
            inter_bytes_per_s, inter_latency_s: per network card and direction, and latency between two nodes.
            nic_of: "rank" (a network card per GPU) or "node" (one card that the node's GPUs share).
            assumed: see Topology.
        """
        if num_nodes < 1 or ranks_per_node < 1:
            raise ValueError(f"topology {name} needs at least one node and one rank per node")
        if nic_of not in ("rank", "node"):
            raise ValueError(f"topology {name}: nic_of must be rank or node, got {nic_of!r}")
        if num_nodes > 1 or inter_bytes_per_s != math.inf:
            require_positive(f"topology {name}: bandwidth inter_bytes_per_s", inter_bytes_per_s)
        if not 0 <= inter_latency_s < math.inf:
            raise ValueError(f"topology {name}: inter_latency_s must be a time in seconds, got {inter_latency_s}")
        if num_nodes > 1 and nic_of == "rank" and inter_latency_s <= intra_latency_s:
            raise ValueError(
                f"topology {name}: inter_latency_s must exceed intra_latency_s, or GPUs of a node would meet outside it"
            )
        inner = {"bytes_per_s": intra_bytes_per_s, "latency_s": intra_latency_s / 2}
        outer = {"bytes_per_s": inter_bytes_per_s, "latency_s": inter_latency_s / 2}
        graph = nx.Graph()
        for node in range(num_nodes):
            for local in range(ranks_per_node):
                vertex = f"node{node}.gpu{local}"
                graph.add_node(vertex, gpu=gpu, node=node)
                graph.add_edge(vertex, f"node{node}.switch", **inner)
                if num_nodes > 1 and nic_of == "rank":
                    graph.add_edge(vertex, "fabric", **outer)
            if num_nodes > 1 and nic_of == "node":
                graph.add_edge(f"node{node}.switch", "fabric", **outer)
        return cls.from_graph(name, graph, assumed=assumed)


def proxy_ranks(ranks_per_node: Sequence[int]) -> NDArray[np.int64]:
    """[R, N] the rank of node n that receives rank r's tokens in hierarchical dispatch: the one of equal local number.

    On a smaller node local numbers wrap around. On its own node a rank is its own proxy.
    """
    sizes = np.asarray(ranks_per_node)
    first = np.cumsum(sizes) - sizes
    local = np.concatenate([np.arange(size) for size in sizes])
    return np.asarray(first[None, :] + local[:, None] % sizes[None, :], np.int64)


def _directed_links(name: str, graph: nx.Graph) -> list[tuple[Hashable, Hashable]]:
    for a, b, link in graph.edges(data=True):
        require_positive(
            f"topology {name}: bandwidth (bytes_per_s) of link {a} - {b}", link.get("bytes_per_s", math.nan)
        )
        if not 0 <= link.get("latency_s", math.nan) < math.inf:
            raise ValueError(f"topology {name}: latency_s of link {a} - {b} must be a time in seconds")
    ends = list(graph.edges)
    return ends if graph.is_directed() else ends + [(b, a) for a, b in ends]


def _routes_from(graph: nx.Graph, start: Hashable) -> dict[Hashable, list[Hashable]]:
    """Least-latency paths from one GPU; other GPUs end a path, but those of its own node may forward."""

    def weight(a: Hashable, _b: Hashable, link: dict[str, Any]) -> float | None:
        vertex = graph.nodes[a]
        forwards = a == start or "gpu" not in vertex
        forwards |= vertex.get("forwards", False) and vertex["node"] == graph.nodes[start]["node"]
        return link["latency_s"] + 1e-12 if forwards else None  # 1e-12 s a link: of equal paths the shortest

    paths: dict[Hashable, list[Hashable]] = nx.single_source_dijkstra_path(graph, start, weight=weight)
    return paths
