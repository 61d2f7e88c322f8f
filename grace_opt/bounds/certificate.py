"""Lower bounds of a problem, the best of all methods, layer by layer: what its plans are measured against."""

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.bounds import combinatorial
from grace_opt.bounds.branch_and_bound import Limits, bound_by_cases
from grace_opt.bounds.node_rows import rows_relaxation
from grace_opt.bounds.relaxation import Relaxation
from grace_opt.bounds.token_sets import token_sets
from grace_opt.cores import num_cores
from grace_opt.interrupts import interrupts_held
from grace_opt.problem import Problem

METHODS = ("combinatorial", "semidefinite")
Progress = Callable[[int, float], None]


@dataclass(frozen=True, eq=False)
class Bounds:
    """What no plan of a problem can beat, on the trace of that problem counted as one batch.

    Attributes:
        cross_node_rows: float64 [L], rows between nodes, under every scheme.
        intra_node_rows: float64 [L], rows between ranks of a node under `hierarchical`.
        busiest_load: float64 [L], (token, expert) pairs of the busiest rank.
        cross_node_method, intra_node_method: of each layer, one of METHODS.
    """

    cross_node_rows: NDArray[np.float64]
    intra_node_rows: NDArray[np.float64]
    busiest_load: NDArray[np.float64]
    cross_node_method: tuple[str, ...]
    intra_node_method: tuple[str, ...]

    def __post_init__(self) -> None:
        for array in (self.cross_node_rows, self.intra_node_rows, self.busiest_load):
            assert np.isfinite(array).all()
            array.setflags(write=False)


def counted_bounds(problem: Problem) -> Bounds:
    """The bounds that counting slots gives, in no time."""
    methods = (METHODS[0],) * problem.model.num_layers
    return Bounds(
        np.array(combinatorial.cross_node_rows(problem)),
        np.array(combinatorial.rows_off_proxies(problem)),
        np.array(combinatorial.busiest_rank_load(problem)),
        methods,
        methods,
    )


def lower_bounds(
    problem: Problem,
    seconds_per_layer: float = 60.0,
    workers: int | None = None,
    *,
    cases_per_layer: int = 10**9,
    rows_of_plan: Sequence[float] | None = None,
    intra: bool = True,
    progress: Progress | None = None,
) -> Bounds:
    """Bound every layer; Ctrl-C ends it early with what is proven so far.

    Args:
        seconds_per_layer: for the rows between nodes of one layer; half of it for those inside nodes.
        workers: processes, each with a layer at a time; None uses all cores, 1 stays in this process.
        cases_per_layer: of branch and bound; with this limit and endless seconds the bounds are deterministic.
        rows_of_plan: [L] rows between nodes of a known plan, at which the search for better bounds may stop.
        intra: also bound rows inside nodes by more than counting.
        progress: called with (layer, proven rows between nodes) as they rise.

    Raises:
        ValueError: seconds, cases or workers are not positive.
    """
    workers = num_cores() if workers is None else workers
    for name, value in (("seconds_per_layer", seconds_per_layer), ("cases_per_layer", cases_per_layer)):
        if not value > 0:
            raise ValueError(f"bounds: {name} must be positive, got {value}")
    if workers < 1:
        raise ValueError(f"bounds: workers must be at least 1, got {workers}")
    counted = combinatorial.cross_node_rows(problem), combinatorial.rows_off_proxies(problem)
    tasks = list(_tasks(problem, seconds_per_layer, cases_per_layer, rows_of_plan, intra))
    proven = np.array(counted)
    found = _run(tasks, proven, workers, progress)
    methods = [tuple(METHODS[int(better)] for better in row) for row in found > proven]
    best = np.maximum(found, proven)
    return Bounds(best[0].copy(), best[1].copy(), combinatorial.busiest_rank_load(problem), methods[0], methods[1])


@dataclass(frozen=True, eq=False)
class _Task:
    place: tuple[int, int]  # 0 between nodes or 1 inside, layer
    relaxation: Relaxation
    limits: Limits


def _tasks(
    problem: Problem, seconds: float, cases: int, rows_of_plan: Sequence[float] | None, intra: bool
) -> Iterator[_Task]:
    topology, trace = problem.topology, problem.trace
    node_of_rank, sizes = topology.node_of_rank, topology.ranks_per_node
    groupings = [(0, node_of_rank, seconds)] if topology.num_nodes > 1 else []
    if intra and len(set(sizes)) == 1 and sizes[0] > 1:
        groupings.append((1, np.arange(topology.num_ranks) % sizes[0], seconds / 2))
    for kind, group_of_rank, budget in groupings:
        slots_G = np.bincount(group_of_rank, problem.slots_per_rank).astype(np.int64)
        for layer in range(trace.num_layers):
            known = math.inf if rows_of_plan is None or kind else float(rows_of_plan[layer])
            relaxation = rows_relaxation(token_sets(trace, layer, group_of_rank), problem.model.num_experts, slots_G)
            yield _Task((kind, layer), relaxation, Limits(budget, cases, known))


def _run(
    tasks: list[_Task], proven: NDArray[np.float64], workers: int, progress: Progress | None
) -> NDArray[np.float64]:
    """[2, L] what the tasks prove; of an interrupted one what it had proven."""
    found = np.zeros_like(proven)

    def note(place: tuple[int, int], rows: float) -> None:
        found[place] = max(found[place], rows)
        if progress is not None and place[0] == 0:
            progress(place[1], float(max(found[place], proven[place])))

    try:
        if workers == 1 or len(tasks) < 2:
            for task in tasks:
                _prove(task, note)
            return found
        context = multiprocessing.get_context("spawn")
        reports: Any = context.SimpleQueue()
        with ExitStack() as stack:
            with interrupts_held():  # a worker without its first message, or one that hears of it, prints a traceback
                pool = stack.enter_context(context.Pool(min(workers, len(tasks)), _begin, (reports,)))
            results = [pool.apply_async(_prove_and_report, (task,)) for task in tasks]
            while any(not result.ready() for result in results) or not reports.empty():
                if reports.empty():
                    next((result for result in results if not result.ready()), results[0]).wait(0.1)
                else:
                    note(*reports.get())
            for result in results:
                result.get()
    except KeyboardInterrupt:
        pass
    return found


def _prove(task: _Task, note: Callable[[tuple[int, int], float], None]) -> None:
    """Rows are whole numbers, so a bound is rounded up."""
    bound_by_cases(task.relaxation, task.limits, lambda bound, _: note(task.place, math.ceil(bound)))


_reports: Any = None


def _begin(reports: Any) -> None:
    global _reports
    _reports = reports


def _prove_and_report(task: _Task) -> None:
    try:
        _prove(task, lambda place, rows: _reports.put((place, rows)))
    except KeyboardInterrupt:
        return
