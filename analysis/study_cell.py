"""One cell of a study: a configuration, the row it gives, and the file that keeps the row.

A cell is named by the digest of what decides its row: the resolved configuration of its parts, with the content of
every file they name in place of the file's path, and the version of this software. A cell whose file exists is done.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.parts import at_homes_of, problems, solve, with_wanted_slots
from analysis.results import Row
from analysis.study_cache import StudyCache
from analysis.whole_model import Count, Passes, counted, counter, end_to_end, fields, price_overlapped
from grace_opt import __version__
from grace_opt.atomic import write_text_atomically
from grace_opt.configuration import build, check
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.solution import Planner
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from simulator.overlap import require_overlap

_OF_THE_PLAN = (
    *("planner", "method", "split", "scheme", "slots", "slots_used", "slots_per_rank_used"),
    *("objective", "bound", "gap", "plan_s", "overlap"),
)
PARTS = ("model", "topology", "trace", "split", "homes", "cost", "planner", "passes")
OPTIONS = ("slots_per_rank", "deal_slots", "overlap")


def price_cell(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    cost: CostModel,
    planner: Planner,
    passes: Passes,
    overlap: str = "none",
    slots_per_rank: int | Sequence[int] | None = None,
    deal_slots: bool = False,
    cache: StudyCache | None = None,
) -> Row:
    """Plan on the fit part and price on both: one row, the figures of the fit part under `fit_` names.

    Requests live where a plan's own rule for homes puts them, if it has one.

    The whole model's passes are priced on the held-out part, and left out with a warning if the model has no backbone.

    Args:
        deal_slots: `slots_per_rank` is the mean over layers; a planner that deals none gives all layers the same.

    Raises:
        ValueError: bad input, the planner cannot plan within the slots, or they do not fit into memory.
    """
    parts = problems(model, topology, trace, split, homes, slots_per_rank, deal_slots)
    if cache is None:
        parts = with_wanted_slots(parts, [planner]) if slots_per_rank is None else parts
        solution = solve(planner, parts["fit"])
    else:
        solution, parts = cache.solve(planner, parts, asks=slots_per_rank is None)
    parts = at_homes_of(solution.plan, parts)
    name = str(solution.plan.provenance["planner"])
    count = {part: _counter(part, problem, solution.plan, cache) for part, problem in parts.items()}
    rows = {}
    for part, problem in parts.items():
        counts = counted(problem, count[part], cost.tokens_per_rank, overlap)
        rows[part] = price_overlapped(name, type(planner).__name__, part, problem, solution, cost, counts, overlap)
    whole = fields(end_to_end(cost, parts["held_out"], count["held_out"], passes, overlap))
    fit = {f"fit_{key}": value for key, value in rows["fit"].items() if key not in _OF_THE_PLAN}
    held_out = {key: value for key, value in rows["held_out"].items() if key != "split"}
    return {**_about(parts["held_out"], solution.plan, cost), **held_out, **whole, **fit}


def _counter(part: str, problem: Problem, plan: Plan, cache: StudyCache | None) -> Count:
    if cache is None:
        return counter(problem, plan)
    return lambda tokens: cache.counts(part, problem, plan, tokens)


def _about(problem: Problem, plan: Plan, cost: CostModel) -> Row:
    """What the figures are for."""
    transport = getattr(cost, "transport", None)
    assumed = [text for text in (problem.topology.assumed, getattr(transport, "assumed", "")) if text]
    model, topology, trace = problem.model, problem.topology, problem.trace
    slots = plan.placement.slots_reserved.mean() if problem.dealt else plan.placement.slots_used.max()
    return {
        "model": model.name,
        "topology": topology.name,
        "num_nodes": topology.num_nodes,
        "num_ranks": topology.num_ranks,
        "slots_per_rank": int(problem.slots_per_rank.max()),
        "redundant_experts": problem.num_slots - model.num_experts,
        "memory_bytes_per_rank": model.rank_bytes(float(slots)),
        "num_layers": model.num_layers,
        "trace": trace.source,
        "phase": trace.phase,
        "synthetic": trace.synthetic,
        "transport": getattr(transport, "name", None),
        "assumed": "; ".join(assumed),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """What decides the row of one cell.

    Attributes:
        content: the resolved configuration of each part, and the options.
        parts: digest of each, files named by it replaced by their content.
        digest: of all of them and the version.
    """

    content: Mapping[str, Any]
    parts: Mapping[str, str]
    digest: str

    @classmethod
    def from_config(cls, config: DictConfig) -> "Cell":
        """From a composed configuration, `scaled` applied.

        Raises:
            ValueError: `scaled` does not name a number and a factor, or there is no such overlap.
        """
        config = copy.deepcopy(config)
        if config.get("scaled") is not None:
            _scale(config, str(config.scaled))
        check(config)
        require_overlap(config.overlap)
        content = {key: OmegaConf.to_container(config)[key] for key in (*PARTS, *OPTIONS)}  # type: ignore[index, call-overload]
        parts = {key: _digest(_with_file_contents(value)) for key, value in content.items()}
        return cls(content, parts, _digest([__version__, parts]))

    def path(self, output: str | Path) -> Path:
        """Where its row is kept."""
        return Path(output) / "cells" / f"{self.digest}.json"

    def row(self, output: str | Path) -> Row | None:
        """Its row, if it is done; errors that may pass (a full disk, too little memory) do not count as done."""
        try:
            content = json.loads(self.path(output).read_text(encoding="utf-8"))
            row = content["row"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if content.get("digest") != self.digest or content.get("may_pass") else dict(row)

    def price(self, output: str | Path) -> Row:
        """Its row, computed."""
        built = {key: _built(key, json.dumps(self.content[key]), self.parts[key]) for key in PARTS}
        cache = StudyCache(Path(output) / "cache", self.parts)
        return price_cell(**built, **{key: self.content[key] for key in OPTIONS}, cache=cache)


def run_cell(config: DictConfig) -> dict[str, Any]:
    """What Hydra runs for each cell: price it and keep its row, unless that is done; a failure is a row as well."""
    output = str(config.output)
    cell = Cell.from_config(config)
    if (done := cell.row(output)) is not None:
        return {"digest": cell.digest, "row": done}
    start, may_pass = time.perf_counter(), False
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            row = {"status": "ok", "error": None, **cell.price(output)}
        except ValueError as error:
            row = {"status": "error", "error": _one_line(error)}
        except Exception as error:  # one cell must not end a study of hundreds
            may_pass, row = True, {"status": "error", "error": f"{type(error).__name__}: {_one_line(error)}"}
    said = "; ".join(dict.fromkeys(_one_line(warning.message) for warning in heard))
    row |= {"warnings": said or None, "seconds": time.perf_counter() - start}
    record = {"format": "grace-study-cell", "version": 1, "grace_opt": __version__, "digest": cell.digest}
    record |= {"may_pass": may_pass, "config": dict(cell.content), "row": row}
    keep(cell.path(output), record)
    return record


def keep(path: Path, record: Mapping[str, Any]) -> None:
    """Write what `run_cell` found out, whole or not at all."""
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")


def _scale(config: DictConfig, scaled: str) -> None:
    key, _, factor = scaled.rpartition("*")
    try:
        value: Any = OmegaConf.select(config, key) if key else None
        number = float(factor)
    except (OmegaConfBaseException, ValueError):
        value = None
    if type(value) not in (int, float) or not number > 0:
        raise ValueError(
            f"scaled must be the name of a number of this configuration times a positive factor, as "
            f"topology.inter_bytes_per_s*0.5; got {scaled!r}"
        )
    OmegaConf.update(config, key, value * number)


def _with_file_contents(value: Any) -> Any:
    """The same configuration, names of files replaced by digests of what is in them."""
    if isinstance(value, dict):
        return {key: _with_file_contents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_file_contents(item) for item in value]
    if isinstance(value, str) and len(value) < 4096 and "\0" not in value:
        path = Path(value)
        try:
            if path.is_file():
                status = path.stat()
                return _file_digest(path.absolute(), status.st_mtime_ns, status.st_size)
        except OSError:
            return value
    return value


@functools.lru_cache(maxsize=32)
def _file_digest(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _built(key: str, text: str, digest: str) -> Any:
    """The object a part describes; traces and topologies, which take time, are kept for the next cells."""
    make = {"trace": _built_trace, "topology": _built_topology}.get(key)
    return build(OmegaConf.create(json.loads(text))) if make is None else make(text, digest)


@functools.lru_cache(maxsize=2)
def _built_trace(text: str, _digest: str) -> Any:
    return build(OmegaConf.create(json.loads(text)))


@functools.lru_cache(maxsize=8)
def _built_topology(text: str, _digest: str) -> Any:
    return build(OmegaConf.create(json.loads(text)))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())
