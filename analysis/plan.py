"""`grace-opt plan`: make one plan and say what it brings."""

from collections.abc import Sequence

from rich.console import Console

from analysis.parts import price_parts, problems, solve, with_wanted_slots
from analysis.report import print_rows
from analysis.results import Row, add_speedups, describe, require_writable, write_result
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan_file import digest, write_plan
from grace_opt.planners.linear import Linear
from grace_opt.solution import Planner
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
) -> list[Row]:
    """Plan on the fit part, price the plan and `linear` on both parts; write plan.json and result.json.

    Raises:
        ValueError: bad input, or the planner cannot plan within the slots.
    """
    parts = problems(model, topology, trace, split, homes, slots_per_rank)
    if slots_per_rank is None:
        parts = with_wanted_slots(parts, [planner])
    folder = require_writable(output)
    with Console(stderr=True).status("planning"):
        solution = solve(planner, parts["fit"])
    name = str(solution.plan.provenance["planner"])
    rows = price_parts(name, planner, parts, solution, cost)
    if name != "linear":
        linear = Linear()
        rows += price_parts("linear", linear, parts, solve(linear, parts["fit"]), cost)
    about = describe(parts["fit"], parts, cost, split, homes)
    rows = add_speedups(rows)
    write_plan(folder / "plan.json", solution.plan)
    write_result(folder, "plan", about, rows)
    print_rows(about, rows)
    print(f"\nwrote {folder}/plan.json ({digest(solution.plan)[:19]}) and result.json")
    return rows
