"""One point of a Pareto front: who plans at which budget, the row it gives, and the files that keep row and plan."""

import hashlib
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from analysis.parts import price_parts, solve
from analysis.results import Row
from grace_opt import __version__
from grace_opt.atomic import write_text_atomically
from grace_opt.cost import CostModel
from grace_opt.plan_file import write_plan
from grace_opt.problem import Problem
from grace_opt.solution import Planner

_ALSO_OF_FIT = ("cross_node_rows_per_token", "intra_node_rows_per_token", "load_max_over_mean", "layer_time_s")


@dataclass(frozen=True, eq=False)
class Point:
    """A planner at a budget.

    Attributes:
        planner: its name.
        weight: of rows against load, if the joint planner plans for that.
        plans: the planner itself.
        parts: the problems `fit` and `held_out` with the budget.
        digest: of what else decides the row (see `digest_of`).
    """

    planner: str
    weight: float | None
    plans: Planner
    parts: dict[str, Problem]
    digest: str

    @property
    def slots_per_rank(self) -> int:
        """The budget, of the rank that has most."""
        return int(self.parts["fit"].slots_per_rank.max())

    @property
    def name(self) -> str:
        """Of its files."""
        weight = "" if self.weight is None else f"_weight_{self.weight:g}"
        return f"{self.planner.replace('/', '_')}_slots_{self.slots_per_rank}{weight}"

    def row(self, folder: Path, cost: CostModel) -> Row:
        """Its row: read if it is done, else planned and priced, and kept; the planner's error, if it cannot plan."""
        digest = hashlib.sha256(f"{self.digest} {self.plans!r}".encode()).hexdigest()
        known = _read(self._path(folder), digest)
        if known is not None:
            return known
        asked = {"planner": self.planner, "weight": self.weight, "slots_per_rank": self.slots_per_rank}
        try:
            solution = solve(self.plans, self.parts["fit"])
        except ValueError as error:
            return {**asked, "error": str(error)}
        by_part = {row["split"]: row for row in price_parts(self.planner, self.plans, self.parts, solution, cost)}
        fit, row = by_part["fit"], by_part["held_out"]
        model, topology = self.parts["fit"].model, self.parts["fit"].topology
        row = {
            **asked,
            "rows_per_token": row[
                "cross_node_rows_per_token" if topology.num_nodes > 1 else "intra_node_rows_per_token"
            ],
            "memory_bytes_per_rank": model.rank_bytes(row["slots_per_rank_used"]),
            **{key: value for key, value in row.items() if key != "planner"},
            **{f"fit_{key}": fit[key] for key in _ALSO_OF_FIT},
            "plan": f"plans/{self.name}.json",
        }
        self.forget(folder)  # what is kept of it never belongs to another plan than that beside it
        write_plan(folder / "plans" / f"{self.name}.json", solution.plan)
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
        write_text_atomically(self._path(folder), json.dumps({"digest": digest, "row": plain}, indent=1) + "\n")
        return plain

    def forget(self, folder: Path) -> None:
        """Leave nothing of it that a later run would read."""
        self._path(folder).unlink(missing_ok=True)

    def _path(self, folder: Path) -> Path:
        return folder / "points" / f"{self.name}.json"


def digest_of(parts: dict[str, Problem], cost: CostModel) -> str:
    """Of all that a plan and its price depend on besides the planner."""
    fit = parts["fit"]
    topology = fit.topology
    digest = hashlib.sha256(repr([__version__, fit.model, cost, topology.name, topology.gpus]).encode())
    routes = topology.routes.tocoo()
    arrays: list[Any] = [
        fit.slots_per_rank,
        topology.node_of_rank,
        topology.link_bytes_per_s,
        topology.link_burst_bytes,
    ]
    arrays += [topology.latency_s, topology.contention, topology.processor_of_rank, topology.cores]
    arrays += [routes.row, routes.col, routes.data]
    arrays += [fit.trace.expert_ids]  # the parts are sequences of one recording
    for part in parts.values():
        trace = part.trace
        arrays += [trace.starts, trace.stops, trace.homes, trace.domains]
    for array in arrays:
        given = np.ascontiguousarray(array)
        digest.update(f"{given.dtype} {given.shape}".encode())
        digest.update(given.tobytes())
    return digest.hexdigest()


def _read(path: Path, digest: str) -> Row | None:
    """The row that is kept there; None if there is none, or one of other input, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["row"]) if content["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def ctrl_c_counted() -> Iterator[list[int]]:
    """Ctrl-C as ever, and a list that grows with it: a search that takes it as its end raises nothing."""
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():  # only there can signals be received
        yield pressed
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
