"""`grace-opt simulate`: price a saved plan on a trace and a topology, layer by layer and end to end, and explain it."""

from dataclasses import asdict
from pathlib import Path

from analysis.parts import at_homes_of, problems_of_plan
from analysis.plots import caveat, save
from analysis.report import print_bounds, print_homes, print_rows
from analysis.results import Row, assumed_constants, describe, require_writable, write_result
from analysis.timeline_files import draw_timelines, write_chrome_trace
from analysis.traffic_matrix import traffic_matrix
from analysis.whole_model import Passes, counted, counter, end_to_end, fields, price_overlapped, print_end_to_end
from grace_opt.cost import CostModel
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.plan_file import read_plan
from grace_opt.problem import Problem
from grace_opt.solution import Solution
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import Traffic
from simulator.bottleneck import bounds
from simulator.cluster import SimulatedCluster
from simulator.overlap import require_overlap
from simulator.timeline import timeline


def simulate(
    model: MoEModel,
    topology: Topology,
    trace: Trace,
    split: Split,
    homes: Homes,
    cost: CostModel,
    plan: str,
    output: str,
    passes: Passes,
    overlap: str = "none",
    explain: bool = True,
    figures: bool = True,
    batches: int = 4,
) -> list[Row]:
    """Price a plan on both parts of the trace; write result.json.

    Args:
        passes: of the whole model, end to end; left out with a warning if the model has no backbone.
        overlap: `none`, or `two_batch` (see `simulator.overlap`).
        explain: say of the held-out part what bounds each step, and write its timeline; with two batches of halves.
        figures: draw the timeline and the traffic matrix of the held-out part.
        batches: of the timeline that are written.

    Raises:
        ValueError: bad input, or the plan is for another model, node structure, or does not fit in memory.
    """
    if batches < 1:
        raise ValueError(f"batches must be at least 1, got {batches}")
    require_overlap(overlap)
    saved = read_plan(plan)
    saved.check(model, topology)
    parts = problems_of_plan(saved, model, topology, trace, split, homes)
    parts = at_homes_of(saved, parts)
    folder = require_writable(output)
    name = str(saved.provenance.get("planner", "plan"))
    count = {key: counter(part, saved) for key, part in parts.items()}
    counts = {key: counted(part, count[key], cost.tokens_per_rank, overlap) for key, part in parts.items()}
    whole = {key: end_to_end(cost, part, count[key], passes, overlap) for key, part in parts.items()}
    rows = [
        {**price_overlapped(name, "file", key, part, Solution(saved), cost, counts[key], overlap), **fields(whole[key])}
        for key, part in parts.items()
    ]
    about = {**describe(parts["fit"], parts, cost, split, homes), "overlap": overlap, "end_to_end": whole["held_out"]}
    print_rows(about, rows)
    print_homes(saved)
    if overlap == "two_batch":
        print("two half batches take turns: phases are of both halves, a layer hides some of them; what follows about")
        print("bounds, timelines and traffic is of one half after the other")
    print_end_to_end(whole["held_out"])
    held_out, shown = parts["held_out"], counts["held_out"]
    written = ["result.json"]
    if explain and isinstance(cost, SimulatedCluster):
        about["bounds"] = [asdict(bound) for bound in bounds(cost, held_out, saved, shown)]
        print_bounds(about["bounds"], shown.tokens.shape[1])
        written += _write_timeline(folder, cost, held_out, shown, name, figures, batches)
    if figures:
        title = f"{name}: {model.name} on {topology.name}, held out{caveat(about['assumed'])}"
        save(folder / "figures" / "traffic_matrix.png", traffic_matrix(shown, cost.scheme, title))
        written.append("figures/traffic_matrix.png")
    write_result(folder, "simulate", about, rows)
    print(f"\nwrote {', '.join(written)} in {folder}")
    return rows


def _write_timeline(
    folder: Path, cost: SimulatedCluster, problem: Problem, counts: Traffic, name: str, figures: bool, batches: int
) -> list[str]:
    """The Chrome trace and the picture of a plan; the names of what was written."""
    predicted = {"predicted": timeline(cost, problem, counts)}
    nodes, assumed = problem.topology.node_of_rank.tolist(), assumed_constants(problem, cost)
    about = {"planner": name, "scheme": cost.scheme, "topology": problem.topology.name, "assumed": assumed}
    place = f"timelines/{name.replace('/', '_')}_{cost.scheme}"
    write_chrome_trace(folder / f"{place}.json", predicted, nodes, about, batches)
    if figures:
        title = f"{name}, {cost.scheme}: {problem.model.name} on {problem.topology.name}{caveat(assumed)}"
        draw_timelines(folder / f"{place}.png", predicted, nodes, title)
    return [f"{place}.json", f"{place}.png"][: 1 + figures]
