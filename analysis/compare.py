"""`grace-opt compare`: every planner on one trace and cluster, with the same slots, scheme, split and homes."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import track

from analysis import plots
from analysis.parts import price_parts, problems, require_dealer, solve, with_wanted_slots
from analysis.report import print_rows
from analysis.results import Row, add_speedups, describe, require_writable, write_result
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.plan_file import write_plan
from grace_opt.solution import Planner
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace


def compare(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    cost: CostModel,
    planners: dict[str, Planner],
    output: str,
    only: Sequence[str] | None = None,
    slots_per_rank: int | Sequence[int] | None = None,
    deal_slots: bool = False,
    figures: bool = True,
) -> list[Row]:
    """Plan with every planner on the fit part, price on both, print a table; write plans, result.json and figures.

    A planner that cannot plan within the slots becomes a row with its error. Rows are written as they come, so an
    interrupted run leaves those that were finished.

    Args:
        deal_slots: `slots_per_rank` is the mean over layers; planners that deal slots say how many each layer has, of
            the same memory, the others give all layers the same.

    Raises:
        ValueError: bad input, or no planner found a plan.
    """
    chosen = _choose(planners, only)
    if deal_slots:
        require_dealer(chosen.values())
    parts = problems(model, topology, trace, split, homes, slots_per_rank, deal_slots)
    progress = Console(stderr=True)
    if slots_per_rank is None:
        with progress.status("asking planners how many slots they want"):
            parts = with_wanted_slots(parts, chosen.values())
    folder = require_writable(output)
    about = describe(parts["fit"], parts, cost, split, homes)
    rows: list[Row] = []
    plans: dict[str, Plan] = {}
    for name, planner in track(chosen.items(), "planning", console=progress, disable=not progress.is_terminal):
        try:
            solution = solve(planner, parts["fit"])
        except ValueError as error:
            rows.append({"planner": name, "error": str(error)})
            continue
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{len(plans)} finished planners are in {folder}/result.json") from None
        plans[name] = solution.plan
        write_plan(folder / "plans" / f"{name}.json", solution.plan)
        rows += [{**row, "plan": f"plans/{name}.json"} for row in price_parts(name, planner, parts, solution, cost)]
        write_result(folder, "compare", about, rows, complete=False)
    if not plans:
        raise ValueError(f"no planner found a plan; {rows[0]['planner']}: {rows[0]['error']}")
    rows = add_speedups(rows)
    write_result(folder, "compare", about, rows)
    print_rows(about, rows)
    if figures:
        plots.draw_comparison(
            folder / "figures", parts["held_out"], plans, rows, cost.tokens_per_rank, assumed=about["assumed"]
        )
    drawn = f", {len(plots.FIGURES)} figures in figures/" if figures else ""
    print(f"\nwrote {folder}/result.json, {len(plans)} plans in plans/{drawn}")
    return rows


def _choose(planners: dict[str, Planner], only: Sequence[str] | None) -> dict[str, Planner]:
    names = list(planners) if only is None else list(only)
    unknown = [name for name in names if name not in planners]
    if unknown or not names:
        raise ValueError(f"only={names} must name planners of this comparison: {', '.join(planners)}")
    for name in names:
        if not callable(planners[name]):
            raise ValueError(f"planners.{name} must be a planner, got {planners[name]!r}")
    return {name: planners[name] for name in names}
