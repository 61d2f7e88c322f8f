"""Plans and counts that the cells of a study share: computed once, kept in a folder, safe with many processes.

A plan depends on the planner and its options, the model, the fit part of the trace, the slots, and the topology. A
planner that looks at nothing but which ranks share a node says so with a class attribute `plans_by = "structure"`; only
then are its plans shared by topologies that differ in speeds. Counts depend on the plan, the part of the trace and the
batch size, and are priced under every scheme and speed.

Files are written whole or not at all. Where two processes need the same plan, the second waits for the first.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from analysis.parts import deals_slots, solve, with_wanted_slots
from grace_opt import __version__
from grace_opt.atomic import write_atomically, write_text_atomically
from grace_opt.plan import Plan
from grace_opt.plan_file import digest, read_plan, write_plan
from grace_opt.problem import Problem, slots_that_fit
from grace_opt.solution import Planner, Solution
from grace_opt.traffic import Traffic, traffic

try:
    import fcntl
except ImportError:  # not on Windows; there two processes may compute the same plan, which costs time only
    fcntl = None  # type: ignore[assignment]

_COUNTS = ("tokens", "pair_rows", "rank_visits", "node_visits", "tokens_of_rank")


@dataclasses.dataclass(frozen=True)
class StudyCache:
    """What cells of one study computed, for those that need the same.

    Attributes:
        folder: where it is kept.
        parts: digest of the configuration of each part of a cell (`model`, `trace`, `planner`, ...), which names what
            the objects that were built from it are.
    """

    folder: Path
    parts: Mapping[str, str]

    def solve(self, planner: Planner, parts: dict[str, Problem], asks: bool) -> tuple[Solution, dict[str, Problem]]:
        """The planner's solution on the fit part, and the parts with the slots it had.

        Args:
            asks: the planner is given the slots it asks for, in place of those of the problems.

        Raises:
            ValueError: it cannot plan within the slots.
        """
        name = self._plan_name(planner, parts["fit"], asks)
        path, failed = (self._plans / f"{name}.{kind}" for kind in ("json", "error"))
        with _locked(self.folder / "locks" / name):
            if failed.is_file():
                raise ValueError(failed.read_text(encoding="utf-8"))
            if (plan := _read(read_plan, path)) is None:
                try:
                    parts = with_wanted_slots(parts, [planner]) if asks else parts
                    solution = solve(planner, parts["fit"])
                except ValueError as error:
                    write_text_atomically(failed, str(error))
                    raise
                plan = _with_solution(solution)
                write_plan(path, plan)
        slots = plan.provenance["slots_per_rank"]
        parts = {split: dataclasses.replace(part, slots=slots) for split, part in parts.items()}
        return Solution(plan, **plan.provenance["solution"]), parts

    def kept(self, planner: Planner, fit: Problem, asks: bool) -> Plan | None:
        """The plan of `solve`, if it was made before and is still there."""
        plan: Plan | None = _read(read_plan, self._plans / f"{self._plan_name(planner, fit, asks)}.json")
        return plan

    def counts(self, split: str, problem: Problem, plan: Plan, tokens_per_rank: float | None) -> Traffic:
        """The traffic of a plan on one part of the trace."""
        of_part = [self.parts[part] for part in ("trace", "split", "homes")]
        name = _digest([digest(plan), split, problem.topology.num_ranks, tokens_per_rank, *of_part])
        path = self.folder / "counts" / f"{name}.npz"
        kept: Traffic | None = _read(_read_counts, path)
        if kept is not None:
            return kept
        counts = traffic(problem.trace, plan, tokens_per_rank)
        write_atomically(path, lambda temporary: _write_counts(temporary, counts))
        return counts

    @property
    def _plans(self) -> Path:
        return self.folder / "plans"

    def _plan_name(self, planner: Planner, fit: Problem, asks: bool) -> str:
        by_structure = getattr(planner, "plans_by", "topology") == "structure"
        room = np.minimum(slots_that_fit(fit.model, fit.topology), fit.model.num_experts).tolist()
        return _digest(
            [
                *(self.parts[part] for part in ("planner", "model", "trace", "split", "homes")),
                list(fit.topology.ranks_per_node) if by_structure else self.parts["topology"],
                {"fit in memory": room} if asks else fit.slots_per_rank.tolist(),
                *(["dealt"] if fit.dealt and deals_slots(planner) else []),
            ]
        )


def _with_solution(solution: Solution) -> Plan:
    """The plan with what else is known of it in its provenance."""
    known = {name: getattr(solution, name) for name in ("status", "objective", "bound", "seconds")}
    return dataclasses.replace(solution.plan, provenance={**solution.plan.provenance, "solution": known})


def _digest(content: Any) -> str:
    text = json.dumps([__version__, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(read: Any, path: Path) -> Any:
    """What a file of the cache holds; None if there is none or it was damaged, and the value is computed again."""
    try:
        return read(path) if path.is_file() else None
    except (ValueError, KeyError, EOFError, OSError, BadZipFile):
        return None


def _write_counts(path: Path, counts: Traffic) -> None:
    arrays: dict[str, Any] = {name: _narrow(getattr(counts, name)) for name in _COUNTS}
    with path.open("wb") as file:
        np.savez(file, ranks_per_node=np.array(counts.ranks_per_node), **arrays)


def _read_counts(path: Path) -> Traffic:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name].astype(np.int64) for name in _COUNTS}
        return Traffic(**arrays, ranks_per_node=tuple(content["ranks_per_node"].tolist()))


def _narrow(counts: NDArray[np.int64]) -> NDArray[np.integer]:
    """The same counts in the smallest type that holds them."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time is inside; the lock of a process that is killed is released."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: as on Windows
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
