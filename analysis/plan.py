"""`grace-opt plan`: make one plan and say what it brings."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from analysis.certify import Certificate, certify
from analysis.parts import price_parts, problems, solve, with_wanted_slots
from analysis.report import print_homes, print_rows
from analysis.results import Row, add_speedups, describe, require_writable, write_result
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan_file import digest, write_plan
from grace_opt.planners.joint_search import Progress as SearchProgress
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem
from grace_opt.solution import Planner, Solution
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace


def plan(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    cost: CostModel,
    planner: Planner,
    output: str,
    slots_per_rank: int | Sequence[int] | None = None,
    bound_seconds: float | None = None,
) -> list[Row]:
    """Plan on the fit part, price the plan and `linear` on both parts; write plan.json and result.json.

    Args:
        bound_seconds: per layer, to prove how good a plan can be on the fit part; None only counts slots, at once.

    Raises:
        ValueError: bad input, or the planner cannot plan within the slots.
    """
    if bound_seconds is not None and not 0 < bound_seconds < float("inf"):
        raise ValueError(
            f"bound_seconds must be a positive number, or null for bounds by counting alone, got {bound_seconds}"
        )
    parts = problems(model, topology, trace, split, homes, slots_per_rank)
    if slots_per_rank is None:
        parts = with_wanted_slots(parts, [planner])
    folder = require_writable(output)
    solution = _solve(planner, parts["fit"])
    write_plan(folder / "plan.json", solution.plan)  # before anything else can be interrupted
    certificate = _certify(solution, parts["fit"], cost, bound_seconds)
    solution = certificate.solution
    name = str(solution.plan.provenance["planner"])
    rows = price_parts(name, planner, parts, solution, cost)
    if name != "linear":
        linear = Linear()
        rows += price_parts("linear", linear, parts, solve(linear, parts["fit"]), cost)
    about = describe(parts["fit"], parts, cost, split, homes)
    rows = add_speedups(rows)
    write_result(folder, "plan", about, rows)
    print_rows(about, rows)
    print_homes(solution.plan)
    _print_certificate(certificate, by_counting=bound_seconds is None)
    print(f"\nwrote {folder}/plan.json ({digest(solution.plan)[:19]}) and result.json")
    return rows


def _solve(planner: Planner, problem: Problem) -> Solution:
    """The planner's solution; a planner that searches shows how far it is."""
    with _progress("planning", problem.model.num_layers) as show:

        def watch(now: SearchProgress) -> None:
            show(now.layers_done, f"{now.start_s * 1e3:.3f} -> {now.found_s * 1e3:.3f} ms a layer")

        return solve(planner, problem, watch)


def _certify(solution: Solution, problem: Problem, cost: CostModel, seconds: float | None) -> Certificate:
    if seconds is None:
        return certify(solution, problem, cost, None)
    with _progress("proving bounds", problem.model.num_layers) as show:
        proven: dict[int, float] = {}

        def watch(layer: int, rows: float) -> None:
            proven[layer] = rows
            show(len(proven), f"at least {sum(proven.values()):,.0f} rows between nodes")

        return certify(solution, problem, cost, seconds, watch)


class _progress:  # noqa: N801  # used like a function
    """A line on a terminal: what is done, how many layers of how many, and how it stands; elsewhere nothing."""

    def __init__(self, what: str, total: int) -> None:
        columns = TextColumn("{task.description} {task.completed}/{task.total} layers  {task.fields[stands]}")
        self._bar = Progress(columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(what, total=total, stands="")

    def __enter__(self) -> Callable[[int, str], None]:
        if self._bar.console.is_terminal:
            self._bar.start()
        return lambda done, stands: self._bar.update(self._task, completed=done, stands=stands)

    def __exit__(self, *_: object) -> None:
        if self._bar.console.is_terminal:
            self._bar.stop()


def _print_certificate(certificate: Certificate, by_counting: bool) -> None:
    solution, rows = certificate.solution, certificate.least_cross_node_rows
    if solution.objective is not None and solution.bound is not None and solution.gap is not None:
        found, least = solution.objective * 1e3, solution.bound * 1e3
        print(f"\nfit part: {found:.3f} ms a layer; no plan takes less than {least:.3f} (gap {solution.gap:.1%})")
        if by_counting:
            print("(a bound by counting slots alone; bound_seconds=60 takes minutes and proves far more)")
    if certificate.median_gap is not None:
        print(
            f"rows between nodes: {certificate.cross_node_rows:,}, at least {rows:,.0f} under any plan "
            f"(median gap of a layer {certificate.median_gap:.1%})"
        )
