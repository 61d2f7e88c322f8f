"""Lower bounds of a problem, the best of all methods, layer by layer: what its plans are measured against."""

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.bounds import combinatorial
from grace_opt.bounds.branch_and_bound import Limits, bound_by_cases
from grace_opt.bounds.node_rows import rows_relaxation
from grace_opt.bounds.relaxation import Relaxation
from grace_opt.bounds.senders import Sending
from grace_opt.bounds.token_sets import token_sets
from grace_opt.cores import num_cores
from grace_opt.interrupts import interrupts_held
from grace_opt.problem import Problem

METHODS = ("combinatorial", "semidefinite")
SEARCHED = ("cross_node_rows", "busiest_sender_rows", "intra_node_rows")
"""Fields of `Bounds` that are raised by search."""
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, eq=False)
class Bounds:
    """What no plan of a problem can beat, on the trace of that problem counted as one batch.

    Attributes:
        cross_node_rows: float64 [L], rows between nodes, under every scheme.
        busiest_sender_rows: float64 [L], those of the busiest sender of each batch, summed over batches; 0 if it was
            not said who sends (`senders.Sending`).
        intra_node_rows: float64 [L], rows between ranks of a node under `hierarchical`.
        busiest_receiver_rows: float64 [L], those that the busiest rank receives.
        busiest_load: float64 [L], (token, expert) pairs of the busiest rank.
        cross_node_method, intra_node_method: of each layer, one of METHODS.
    """

    cross_node_rows: NDArray[np.float64]
    busiest_sender_rows: NDArray[np.float64]
    intra_node_rows: NDArray[np.float64]
    busiest_receiver_rows: NDArray[np.float64]
    busiest_load: NDArray[np.float64]
    cross_node_method: tuple[str, ...] = ()
    intra_node_method: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self)[:5]:
            array = np.array(getattr(self, field.name), np.float64)
            assert np.isfinite(array).all()
            array.setflags(write=False)
            object.__setattr__(self, field.name, array)


def counted_bounds(problem: Problem) -> Bounds:
    """The bounds that counting slots gives, in no time.

    Raises:
        ValueError: the slots are dealt to layers (see `deals`).
    """
    if problem.dealt:
        raise ValueError("bounds: layers bounded one by one need the same slots in each; these are dealt to layers")
    methods = (METHODS[0],) * problem.model.num_layers
    return Bounds(
        combinatorial.cross_node_rows(problem),
        np.zeros(problem.model.num_layers),
        combinatorial.rows_off_proxies(problem),
        combinatorial.busiest_receiver_rows(problem),
        combinatorial.busiest_rank_load(problem),
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
    sending: Sending | None = None,
    busiest_of_plan: Sequence[float] | None = None,
    intra: bool = True,
    progress: Progress | None = None,
) -> Bounds:
    """Bound every layer; Ctrl-C ends it early with what is proven so far.

    Args:
        seconds_per_layer: for the rows between nodes of one layer, and again for those of the busiest sender; half of
            it for those inside nodes.
        workers: processes, each with a layer at a time; None uses all cores, 1 stays in this process.
        cases_per_layer: of branch and bound; with this limit and endless seconds the bounds are deterministic.
        rows_of_plan: [L] rows between nodes of a known plan, at which the search for better bounds may stop.
        sending: who sends rows between nodes, to bound the busiest too.
        busiest_of_plan: [L] rows of a known plan's busiest senders, likewise.
        intra: also bound rows inside nodes by more than counting.
        progress: called with (index into SEARCHED, layer, proven rows) as they rise.

    Raises:
        ValueError: seconds, cases or workers are not positive.
    """
    workers = num_cores() if workers is None else workers
    for name, value in (("seconds_per_layer", seconds_per_layer), ("cases_per_layer", cases_per_layer)):
        if not value > 0:
            raise ValueError(f"bounds: {name} must be positive, got {value}")
    if workers < 1:
        raise ValueError(f"bounds: workers must be at least 1, got {workers}")
    counted = counted_bounds(problem)
    known = (rows_of_plan, busiest_of_plan, None)
    tasks = list(_tasks(problem, seconds_per_layer, cases_per_layer, known, sending, intra))
    proven = np.array([getattr(counted, name) for name in SEARCHED])
    found = _run(tasks, proven, workers, progress)
    methods = [tuple(METHODS[int(better)] for better in row) for row in found > proven]
    raised: dict[str, Any] = dict(zip(SEARCHED, np.maximum(found, proven), strict=True))
    return replace(counted, **raised, cross_node_method=methods[0], intra_node_method=methods[2])


@dataclass(frozen=True, eq=False)
class _Task:
    place: tuple[int, int]  # index into SEARCHED, layer
    relaxation: Relaxation
    limits: Limits


def _tasks(
    problem: Problem,
    seconds: float,
    cases: int,
    known: Sequence[Sequence[float] | None],
    sending: Sending | None,
    intra: bool,
) -> Iterator[_Task]:
    topology, trace = problem.topology, problem.trace
    sizes, layers = topology.ranks_per_node, range(trace.num_layers)
    groupings = [(0, topology.node_of_rank, seconds)] if topology.num_nodes > 1 else []
    if sending is not None and topology.num_nodes > 1:
        groupings.append((1, topology.node_of_rank, seconds))
    if intra and len(set(sizes)) == 1 and sizes[0] > 1:
        groupings.append((2, np.arange(topology.num_ranks) % sizes[0], seconds / 2))
    for kind, group_of_rank, budget in groupings:
        slots_G = np.bincount(group_of_rank, problem.slots_per_rank).astype(np.int64)
        for layer in layers:
            of_plan = known[kind]
            limits = Limits(budget, cases, math.inf if of_plan is None else float(of_plan[layer]))
            if kind == 1 and sending is not None:
                tokens, senders = sending.token_sets(trace, layer, topology.node_of_rank)
            else:
                tokens, senders = token_sets(trace, layer, group_of_rank), None
            yield _Task((kind, layer), rows_relaxation(tokens, problem.model.num_experts, slots_G, senders), limits)


def _run(
    tasks: list[_Task], proven: NDArray[np.float64], workers: int, progress: Progress | None
) -> NDArray[np.float64]:
    """[SEARCHED, L] what the tasks prove; of an interrupted one what it had proven."""
    found = np.zeros_like(proven)

    def note(place: tuple[int, int], rows: float) -> None:
        found[place] = max(found[place], rows)
        if progress is not None:
            progress(*place, float(max(found[place], proven[place])))

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
