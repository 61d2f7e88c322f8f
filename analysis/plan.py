"""`grace-opt plan`: make one plan and say what it brings."""

from collections.abc import Sequence

from analysis.certify import Certificate, certify, counted_seconds
from analysis.gap_line import GapLine
from analysis.parts import price_parts, problems, require_dealer, solve, with_wanted_slots
from analysis.plan_from_loads import plan_from_loads
from analysis.report import print_deal, print_homes, print_rows
from analysis.results import Row, add_speedups, describe, require_writable, write_result
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.load_history import LoadHistory
from grace_opt.model import MoEModel
from grace_opt.plan_file import digest, write_plan
from grace_opt.planners.joint_progress import Enough
from grace_opt.planners.joint_progress import Progress as SearchProgress
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem
from grace_opt.solution import Planner, Solution
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace


def plan(
    model: MoEModel,
    topology: Topology,
    trace: Trace | LoadHistory,
    split: Split,
    homes: Homes,
    cost: CostModel,
    planner: Planner,
    output: str,
    slots_per_rank: int | Sequence[int] | None = None,
    deal_slots: bool = False,
    bound_seconds: float | None = None,
    gap: float | None = None,
) -> list[Row]:
    """Plan on the fit part, price the plan and `linear` on both parts; write plan.json and result.json.

    Ctrl-C ends a search, then the bounds; either time the best plan and bound so far are written.

    Args:
        trace: tokens, or loads alone (see `plan_from_loads`, which takes over).
        deal_slots: `slots_per_rank` is the mean over layers, the planner says how many each has.
        bound_seconds: per layer, to prove how good a plan can be on the fit part; None only counts slots, at once.
        gap: (layer time - bound) / bound of the fit part that is good enough: a search ends where the bound by counting
            proves it, bounds end where they do. None: never.

    Raises:
        ValueError: bad input, or the planner cannot plan within the slots.
    """
    if isinstance(trace, LoadHistory):
        if gap is not None:
            raise ValueError("gap compares layer times, which counts do not tell: leave it null")
        if deal_slots:
            raise ValueError("deal_slots=true needs tokens, a history of loads has none: leave it false")
        return plan_from_loads(model, topology, trace, split, planner, output, slots_per_rank, bound_seconds)
    _check_limits(planner, cost, bound_seconds, gap)
    if deal_slots:
        require_dealer([planner])
        if bound_seconds is not None:
            raise ValueError(
                f"bound_seconds={bound_seconds} bounds layers one by one, which deal_slots=true decides together: "
                "leave it null, slots are counted then"
            )
    parts = problems(model, topology, trace, split, homes, slots_per_rank, deal_slots)
    if slots_per_rank is None:
        parts = with_wanted_slots(parts, [planner])
    folder = require_writable(output)
    fit = parts["fit"]
    with GapLine(fit.model.num_layers, gap) as line:
        solution = _solve(planner, fit, cost, line)
        write_plan(folder / "plan.json", solution.plan)  # before anything else can be interrupted
        certificate = certify(solution, fit, cost, None)
        name = str(solution.plan.provenance["planner"])
        rows = price_parts(name, planner, parts, certificate.solution, cost)
        if name != "linear":
            linear = Linear()
            rows += price_parts("linear", linear, parts, solve(linear, fit), cost)
        about = describe(fit, parts, cost, split, homes)
        rows = add_speedups(rows)
        if bound_seconds is not None:
            write_result(folder, "plan", about, rows, complete=False)
            certificate = _bound(certificate, fit, cost, bound_seconds, line)
            rows = [_with_bound(row, certificate.solution) if row["planner"] == name else row for row in rows]
    write_result(folder, "plan", about, rows)
    print_rows(about, rows)
    print_homes(solution.plan)
    print_deal(fit, solution.plan)
    _print_certificate(certificate, by_counting=bound_seconds is None, dealt=deal_slots)
    print(f"\nwrote {folder}/plan.json ({digest(solution.plan)[:19]}) and result.json")
    return rows


def _check_limits(planner: Planner, cost: CostModel, bound_seconds: float | None, gap: float | None) -> None:
    if bound_seconds is not None and not 0 < bound_seconds < float("inf"):
        raise ValueError(
            f"bound_seconds must be a positive number, or null for bounds by counting alone, got {bound_seconds}"
        )
    if gap is None:
        return
    if not 0 <= gap < float("inf"):
        raise ValueError(f"gap must be a number, not negative, or null, got {gap}")
    if bound_seconds is None and (not hasattr(planner, "search") or getattr(planner, "homes", "") == "chosen"):
        raise ValueError(
            f"gap={gap} would end nothing: {type(planner).__name__} has no search that a bound by counting can end; "
            "give bound_seconds too"
        )
    if not hasattr(cost, "least_time"):
        raise ValueError(f"gap={gap} needs a cost model that tells least times; {type(cost).__name__} does not")


def _solve(planner: Planner, problem: Problem, cost: CostModel, line: GapLine) -> Solution:
    """The planner's solution; a planner that searches shows how far it is, beside the bound that counting gives."""
    searches = hasattr(planner, "search")
    bound_s = counted_seconds(problem, cost) if searches else None

    def watch(now: SearchProgress) -> None:
        line.show(now.stage, now.layers_done, now.found_s, bound_s if now.own_homes else None)

    return solve(planner, problem, watch)


def _bound(certificate: Certificate, problem: Problem, cost: CostModel, seconds: float, line: GapLine) -> Certificate:
    """Prove more than counting does, unless the wanted gap is reached already."""
    solution = certificate.solution

    def watch(begun: int, bound_s: float | None) -> None:
        line.show("bounding", begun, solution.objective, bound_s)

    try:
        watch(0, solution.bound)
    except Enough:
        return certificate
    return certify(solution, problem, cost, seconds, watch)


def _with_bound(row: Row, solution: Solution) -> Row:
    return {**row, "objective": solution.objective, "bound": solution.bound, "gap": solution.gap}


def _print_certificate(certificate: Certificate, by_counting: bool, dealt: bool) -> None:
    solution, rows = certificate.solution, certificate.least_cross_node_rows
    if solution.objective is not None and solution.bound is not None and solution.gap is not None:
        found, least = solution.objective * 1e3, solution.bound * 1e3
        print(f"\nfit part: {found:.3f} ms a layer; no plan takes less than {least:.3f} (gap {solution.gap:.1%})")
        if by_counting:
            more = "" if dealt else "; bound_seconds=60 takes minutes and proves far more"
            print(f"(a bound by counting slots alone{more})")
    if certificate.median_gap is not None:
        print(
            f"rows between nodes: {certificate.cross_node_rows:,}, at least {rows:,.0f} under any plan "
            f"(median gap of a layer {certificate.median_gap:.1%})"
        )
    if certificate.median_busiest_gap is not None:
        print(f"rows of the busiest sender: median gap of a layer {certificate.median_busiest_gap:.1%}")
