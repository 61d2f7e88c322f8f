"""Tiny problems a person can check by hand, random ones for property tests, and the real recordings where present."""

import copy
import functools
import importlib.util
import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from grace_opt.configuration import CONF_DIR
from grace_opt.gpu import GPU
from grace_opt.model import MoEModel
from grace_opt.placement import EMPTY, Placement
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.routing import POLICIES, Routing
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.trace_file import read_trace, write_trace
from simulator.calibration.expert_tables import rows_of
from simulator.calibration.experts import predict
from simulator.calibration.tables import Table

# Triton reads this when it is imported, which transformers does too: ask for its interpreter before any test imports.
if importlib.util.find_spec("triton") and not importlib.import_module("torch").cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("grace", deadline=None, max_examples=80)  # time decides no test: the first call compiles
settings.load_profile("grace")

# A row is 20 bytes. An expert is 300 bytes, read in 0.3 s; a tile of 2 tokens computes in 0.2 s; a launch takes 0.05 s.
MODEL = MoEModel("toy", num_layers=1, num_experts=4, top_k=2, hidden_size=10, ffn_size=5)
DEVICE = GPU("toy", flops_per_s=3000, memory_bytes_per_s=1000, memory_bytes=3000, launch_s=0.05, tile_tokens=2)
# A GPU's link inside the node takes 10 rows a second, a network card one.
LINKS = {"intra_bytes_per_s": 200, "intra_latency_s": 0.01, "inter_bytes_per_s": 20, "inter_latency_s": 0.1}


ROOT = Path(__file__).parents[1]
IMPORTED = ("runtime.__main__", "analysis.compare", "analysis.plan", "analysis.simulate", "analysis.validate", __name__)


@dataclass(frozen=True, eq=False)
class Case:
    """A random problem, a random plan within its slots, and a batch size."""

    problem: Problem
    plan: Plan
    tokens_per_rank: int | None


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """Folder of real recordings; they stay outside the project."""
    folder = Path(__file__).parents[2] / "shared" / "traces"
    if not folder.is_dir():
        pytest.skip(f"no real routing traces in {folder}")
    return folder


@pytest.fixture(scope="session")
def forked() -> Callable[..., BaseProcess]:
    """(arguments, out, err, environment) -> a process that does what `python ARGUMENTS` does, its output in two files.

    It is forked from a server that has imported the commands already, which takes longer than most tests. Of its
    environment the changes are given; FOLDER is where it runs. With a PYTHONPATH it is an interpreter of its own.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(IMPORTED))

    def start(arguments: Sequence[str], out: Path, err: Path, environment: Mapping[str, str]) -> BaseProcess:
        process = server.Process(target=_become, args=(arguments, out, err, environment))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def short_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two layers of every sixth sequence of the sample: a synthetic trace is fitted to it in no time."""
    sample = read_trace(CONF_DIR / "samples" / "sample.safetensors")
    part = sample.select(np.arange(0, sample.num_sequences, 6))
    sequence, domain = (np.repeat(ids, part.lengths) for ids in (np.arange(part.num_sequences), part.domains))
    path = tmp_path_factory.mktemp("short") / "sample.safetensors"
    write_trace(
        path, expert_ids=np.stack([part.layer(layer) for layer in range(2)]), sequence=sequence, domain=domain,
        domain_names=part.domain_names, model=part.model, num_experts=part.num_experts, phase=part.phase,
        source=part.source,
    )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def model() -> MoEModel:
    return MODEL


@pytest.fixture(scope="session")
def gpu() -> GPU:
    return DEVICE


@pytest.fixture(scope="session")
def make_topology() -> Callable[..., Topology]:
    """(num_nodes=2, ranks_per_node=2, nic_of="rank") -> equal nodes with the link speeds above."""
    return _topology


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    """([layer][token] lists of experts, one sequence a token unless lengths are given) -> trace with homes."""
    return _trace


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """([layer][rank] lists of experts) -> plan of the toy model on 2 x 2 ranks."""
    return _plan


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """(trace) -> problem of the toy model on 2 x 2 ranks with 2 slots each."""
    return _problem


@pytest.fixture(scope="session")
def random_cases() -> st.SearchStrategy[Case]:
    """All policies, replicas (also on one rank), empty slots and ranks, unequal nodes, 8- and 16-bit ids, batches."""
    return st.builds(
        _random_case,
        seed=st.integers(0, 2**32 - 1),
        policy=st.sampled_from(POLICIES),
        ranks_per_node=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        num_experts=st.integers(1, 6),
        num_layers=st.integers(1, 2),
        num_sequences=st.integers(1, 6),
        replicas=st.integers(0, 8),
        tokens_per_rank=st.none() | st.integers(1, 8),
    )


@pytest.fixture(scope="session")
def damaged() -> Callable[[Any], Iterator[tuple[str, Any]]]:
    """(JSON value) -> ("where: what", the value with one part, at any depth, replaced or left out), all of them."""
    return _damaged


def _become(arguments: Sequence[str], out: Path, err: Path, environment: Mapping[str, str]) -> None:
    for standard, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), standard)
    os.environ.update(environment)
    os.chdir(environment.get("FOLDER", ROOT))
    if "PYTHONPATH" in environment:
        os.execv(sys.executable, [sys.executable, *arguments])
    if arguments[0] == "-m":
        sys.modules.pop(f"{arguments[1]}.__main__", None)  # imported by the server
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def _topology(num_nodes: int = 2, ranks_per_node: int = 2, nic_of: str = "rank", **changes: Any) -> Topology:
    return Topology.two_level("toy", DEVICE, num_nodes, ranks_per_node, nic_of=nic_of, **{**LINKS, **changes})


def _trace(
    expert_ids: Any, homes: Any = None, lengths: Sequence[int] | None = None, dtype: Any = np.uint8, **fields: Any
) -> Trace:
    ids_LTK = np.array(expert_ids, dtype)
    stops = np.cumsum(np.ones(ids_LTK.shape[1], np.int64) if lengths is None else lengths)
    starts = np.concatenate(([0], stops[:-1]))
    fields = {"domains": np.zeros(len(starts)), "domain_names": ("all",), "num_experts": 4, **fields}
    return Trace(ids_LTK, starts, stops, homes=homes, **fields)


def _plan(ranks_of_layer: Any, policy: str = "primary", weights: Any = None, nodes: Sequence[int] = (2, 2)) -> Plan:
    placement = Placement.from_lists(ranks_of_layer, num_experts=4)
    return Plan("toy", tuple(range(len(ranks_of_layer))), tuple(nodes), placement, Routing(policy, weights))


def _problem(trace: Trace, slots: Any = 2, topology: Topology | None = None, model: MoEModel = MODEL) -> Problem:
    return Problem(model, topology or _topology(), trace, slots)


@functools.cache
def _machine(ranks_per_node: tuple[int, ...]) -> Topology:
    graph = nx.Graph()
    for node, size in enumerate(ranks_per_node):
        graph.add_edge(f"switch{node}", "spine", bytes_per_s=20, latency_s=0.05)
        for local in range(size):
            graph.add_node((node, local), gpu=DEVICE, node=node)
            graph.add_edge((node, local), f"switch{node}", bytes_per_s=200, latency_s=0.01)
    return Topology.from_graph("uneven", graph)


def _random_case(
    seed: int, policy: str, ranks_per_node: list[int], num_experts: int, num_layers: int, num_sequences: int,
    replicas: int, tokens_per_rank: int | None,
) -> Case:  # fmt: skip
    random = np.random.default_rng(seed)
    topology = _machine(tuple(ranks_per_node))
    ranks, top_k = topology.num_ranks, int(random.integers(1, min(num_experts, 4) + 1))
    model = MoEModel("toy", num_layers, num_experts, top_k, hidden_size=10, ffn_size=5, bytes_per_weight=0.01)
    lengths = random.integers(1, 9, num_sequences)
    ids_LTK = random.permuted(np.tile(np.arange(num_experts), (num_layers, lengths.sum(), 1)), axis=2)[..., :top_k]
    dtype = random.choice([np.uint8, np.uint16])
    trace = _trace(ids_LTK, lengths=lengths, dtype=dtype, num_experts=num_experts)
    trace = trace.select(random.permutation(num_sequences))  # their order need not be that of the tokens
    trace = replace(trace, homes=random.integers(ranks, size=num_sequences))
    held: list[list[list[int]]] = [[[] for _ in range(ranks)] for _ in range(num_layers)]
    for layer in held:
        for expert in [*random.permutation(num_experts), *random.integers(num_experts, size=replicas)]:
            layer[random.integers(ranks)].append(int(expert))
    placement = Placement.from_lists(held, num_experts)
    weights = None
    if policy == "wrr" or (policy == "tar" and random.integers(2)):
        weights = random.choice([0.1, 1, 1, 2, 3, 7.5], placement.slots.shape) * (placement.slots != EMPTY)
    plan = Plan("toy", tuple(model.layer_ids), topology.ranks_per_node, placement, Routing(policy, weights))
    return Case(Problem(model, topology, trace, placement.slots_used.max(axis=0)), plan, tokens_per_rank)


ODD_VALUES = (None, True, -1, 0, 3, 2.5, 10**12, 10**30, float("nan"), "", "x", "3", [], [[]], [3, -1], {}, {"x": 1})


def _damaged(value: Any) -> Iterator[tuple[str, Any]]:
    for where in _places(value):
        for odd in ODD_VALUES:
            yield f"{where}: {odd!r}", _changed(value, where, lambda parent, key, odd=odd: parent.__setitem__(key, odd))
        yield f"{where}: left out", _changed(value, where, lambda parent, key: parent.__delitem__(key))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from _places(value[key], (*path, key))


def _changed(value: Any, where: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    value = copy.deepcopy(value)
    parent = value
    for key in where[:-1]:
        parent = parent[key]
    change(parent, where[-1])
    return value


# Experts of a GPU that exists in tests only; tables made with it have exactly its times.
EXPERT_GPU = GPU("true", 1e15, 3e12, 1.0, 20e-6, 1, row_s=1e-8, least_s=1e-9, overlap=2.0, slot_s=1e-6)


@pytest.fixture(scope="session")
def expert_gpu() -> GPU:
    return EXPERT_GPU


@pytest.fixture(scope="session")
def make_expert_table() -> Callable[..., Table]:
    """(distributions=("uniform",), ep_sizes=(8, 32, 128)) -> experts in FP8, timed as on expert_gpu."""
    return _expert_table


def _expert_table(distributions: Sequence[str] = ("uniform",), ep_sizes: Sequence[int] = (8, 32, 128)) -> Table:
    cells = [(n, ep, name) for ep in ep_sizes for n in (64, 512, 4096, 32768) for name in distributions]
    sizes = {"hidden_size": 7168.0, "inter_size": 2048.0, "topk": 8.0, "num_experts": 256.0, "latency": 1.0}
    columns: dict[str, Any] = {name: np.full(len(cells), value) for name, value in sizes.items()}
    columns |= {
        "num_tokens": np.array([n for n, _, _ in cells], float),
        "moe_ep_size": np.array([ep for _, ep, _ in cells], float),
        "distribution": np.array([name for _, _, name in cells]),
        "moe_dtype": np.full(len(cells), "fp8_block"),
    }
    seconds = predict(rows_of(Table("made up", columns)), EXPERT_GPU)
    return Table("made up", {**columns, "latency": seconds * 1e3})
