"""`grace-opt simulate`: price a saved plan on a trace and a topology."""

from analysis.parts import price_parts, problems
from analysis.report import print_rows
from analysis.results import Row, describe, require_writable, write_result
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan_file import read_plan
from grace_opt.solution import Solution
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace


def simulate(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    cost: CostModel,
    plan: str,
    output: str,
) -> list[Row]:
    """Price a plan on both parts of the trace; write result.json.

    Raises:
        ValueError: bad input, or the plan is for another model, node structure, or does not fit in memory.
    """
    saved = read_plan(plan)
    saved.check(model, topology)
    parts = problems(model, topology, trace, split, homes, saved.placement.slots_used.max(axis=0).tolist())
    folder = require_writable(output)
    name = str(saved.provenance.get("planner", "plan"))
    rows = price_parts(name, None, parts, Solution(saved), cost)
    about = describe(parts["fit"], parts, cost, split, homes)
    write_result(folder, "simulate", about, rows)
    print_rows(about, rows)
    print(f"\nwrote {folder}/result.json")
    return rows
