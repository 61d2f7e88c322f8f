"""`grace-opt advise`: does a placement pay here, which, in what memory, and how sure is that.

Plans are fitted on one part of the recording and judged on the other, as the engine will run them: ranks filled alike,
copies picked as the engine picks them. They are set against what it does by default, experts in order, and against its
own balancer in the same memory. `analysis.advice.choice` says by what rule one is taken or none.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from analysis.advice.bootstrap import Resamples
from analysis.advice.candidates import Candidate, Workshop, redundancies
from analysis.advice.choice import Comparison
from analysis.advice.demand import phases_of
from analysis.advice.domain_fade import Fade, domains_to_try, fade
from analysis.advice.finding import Finding, finding
from analysis.advice.judging import Judge
from analysis.advice.ledger import Ledger
from analysis.advice.recordings import described_recording, recordings_of
from analysis.advice.serving import Serving
from analysis.advice.text import print_advice
from analysis.front_points import ctrl_c_counted
from analysis.parts import problems
from analysis.results import Row, describe, require_writable
from analysis.whole_model import PASSES, Passes
from grace_opt.homes import Homes
from grace_opt.load_history import LoadHistory
from grace_opt.model import MoEModel
from grace_opt.planners.joint import Joint
from grace_opt.solution import Planner
from grace_opt.split import Split
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from simulator.cluster import SimulatedCluster

Tell = Callable[[str], None]


def advise(
    model: MoEModel,
    topology: Topology,
    trace: Trace | LoadHistory,
    split: Split,
    homes: Homes,
    cost: SimulatedCluster,
    planners: dict[str, Planner],
    passes: Passes,
    output: str,
    engine: str = "sglang",
    all_to_all: bool = True,
    plan_for: Sequence[str] = ("prefill", "decode"),
    generated_tokens: int = 256,
    redundancy: Sequence[int] | None = None,
    min_gain: float = 0.01,
    maps: int = 4,
    resamples: int = 200,
    interval_seconds: float = 30.0,
    domains: int = 4,
    seed: int = 0,
    decode_trace: str | None = None,
) -> list[Row]:
    """Try, judge, decide; write plans and result.json with the object `advice`, print it in plain sentences.

    Ctrl-C leaves a result.json of what was priced by then, without an advice.

    Args:
        planners: those to try beside the engine's own; one that searches does so for the batches of `plan_for`.
        engine: one of `grace_opt.engines.export.ENGINES`, or `grace`.
        all_to_all: False: the engine gathers all tokens on every rank.
        plan_for, generated_tokens: see `analysis.advice.demand`.
        redundancy: redundant experts per rank to try; None: see `candidates.redundancies`.
        min_gain: see `analysis.advice.choice`.
        maps: orders of arrival, each with the homes it leads to and their mirror, on which candidates are compared.
        resamples, interval_seconds: of the bootstrap, at most, and in all.
        domains: how many to leave out, one after the other.
        decode_trace: file of a recording of passes that generate, for which they are planned and on which they are
            judged; None: the trace stands for both.

    Raises:
        ValueError: bad input, or not even the engine's default can be had.
    """
    serving = Serving.of(engine, all_to_all)
    recordings = recordings_of(trace, decode_trace, plan_for)
    if cost.tokens_per_rank is not None:
        raise ValueError(
            f"cost.tokens_per_rank={cost.tokens_per_rank} is not used: set passes.prefill_tokens and decode_tokens"
        )
    _check(min_gain, maps, resamples, interval_seconds, domains, seed)
    _check_planners(planners, decode_trace is not None)
    slots = serving.slots(model, topology, 0)
    parts = problems(model, topology, recordings["prefill"], split, homes, slots)
    parts_of = dict.fromkeys(PASSES, parts)
    if decode_trace is not None:
        parts_of["decode"] = problems(model, topology, recordings["decode"], split, homes, slots)
    phases = phases_of(parts_of, passes, plan_for, generated_tokens)
    workshop = Workshop(serving, planners, phases, cost)
    judge = Judge(homes, phases, cost, serving, passes, maps, seed)
    tries = redundancies(model, topology, serving, redundancy)
    folder = require_writable(output)
    about = {**describe(parts["fit"], parts, cost, split, homes), "engine": engine, "redundancy": tries}
    if decode_trace is not None:
        about["decode"] = described_recording(parts_of["decode"])
    with _watched() as (tell, check):
        ledger = Ledger(folder, about, workshop, judge, check)
        try:
            found = _find(ledger, workshop, judge, tries, tell, min_gain, resamples, interval_seconds)
            fades = _fades(workshop, judge, found, domains, tell, check) if found.pays else []
            tell("pricing resamples")
            advice = finding(found, fades, ledger, judge, about, resamples)
        except KeyboardInterrupt:
            done = f"{len(ledger.candidates)} priced plans are in {folder}/result.json"
            raise KeyboardInterrupt(f"{done}, without an advice") from None
        ledger.write(advice)
    print_advice(advice)
    print(f"\nwrote {folder}/result.json and {len(ledger.candidates)} plans in plans/")
    return ledger.all_rows()


def _find(
    ledger: Ledger, workshop: Workshop, judge: Judge, tries: Sequence[int], tell: Tell, min_gain: float,
    resamples: int, seconds: float,
) -> Finding:  # fmt: skip
    """Make the candidates and decide."""
    tell("pricing the default")
    default = ledger.add(workshop.default())
    names = ["eplb", *workshop.planners]
    for redundancy in tries:
        for name in names:
            for goal in workshop.goals(name):
                tell(f"planning {name} with {redundancy} redundant experts per rank")
                ledger.make(name, redundancy, goal)

    def told(number: int, of: int) -> None:
        tell(f"pricing resamples: {number} of {of} of a plan")

    drawn = Resamples(judge, default, resamples, seconds, 4 + len(tries), told)
    comparison = Comparison(workshop.phases, ledger.rows, drawn)
    best = {
        redundancy: comparison.best(own)
        for redundancy in tries
        if (own := _with_redundancy(ledger, redundancy, default))
    }
    least = comparison.least_redundancy(best, min_gain)
    shared, apart = comparison.shared(best[least]), None
    if len(workshop.phases) > 1:
        _plan_each_phase(ledger, workshop, sorted({tries[0], least}), tell)
        best[least] = comparison.best(_with_redundancy(ledger, least, default))
        shared = comparison.shared(best[least])
        apart = comparison.best_for_each_phase([one for one in ledger.candidates if one.redundancy <= least])
    return Finding.of(comparison, drawn, default, best, least, shared, apart, min_gain)


def _with_redundancy(ledger: Ledger, redundancy: int, default: Candidate) -> list[Candidate]:
    """Those to choose from at a redundancy; the default is one that costs nothing."""
    return [one for one in ledger.candidates if one.redundancy == redundancy or one is default]


def _plan_each_phase(ledger: Ledger, workshop: Workshop, tries: Sequence[int], tell: Tell) -> None:
    for redundancy in tries:
        for name in filter(workshop.searches, workshop.planners):
            for phase in workshop.phases:
                tell(f"planning {name} for {phase.name} alone with {redundancy} redundant experts per rank")
                ledger.make(name, redundancy, phase.name)


def _fades(
    workshop: Workshop, judge: Judge, found: Finding, domains: int, tell: Tell, check: Callable[[], None]
) -> list[Fade]:
    fades = []
    for domain in domains_to_try(workshop.phases, domains):
        tell(f"planning without {domain}")
        try:
            fades.append(fade(workshop, judge, found.choice, found.default, domain, check))
        except ValueError:  # too little is left to plan on
            continue
    return fades


def _check(min_gain: float, maps: int, resamples: int, seconds: float, domains: int, seed: int) -> None:
    for name, value, least in (
        ("maps", maps, 1),
        ("resamples", resamples, 0),
        ("domains", domains, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 <= min_gain < 1:
        raise ValueError(f"min_gain must be a share of the time, from 0 to below 1, got {min_gain}")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"interval_seconds must be a positive number, got {seconds}")


def _check_planners(planners: dict[str, Planner], several_recordings: bool) -> None:
    for name, planner in planners.items():
        if name in ("eplb", "linear"):
            raise ValueError(f"planners.{name}: the engine's default and its own EPLB are always tried, leave it out")
        if not isinstance(planner, Joint):
            continue
        if planner.mix is not None or planner.homes != "given":
            raise ValueError(
                f"planners.{name}: mix follows from plan_for, and engines deal requests themselves: leave mix=null "
                "and homes=given"
            )
        if planner.policy != "cover" or planner.fill:
            raise ValueError(f"planners.{name}: policy and fill follow from engine: leave policy=cover and fill=false")
        if several_recordings and planner.robust != "none":
            raise ValueError(
                f"planners.{name}: robust={planner.robust} goes with one recording: leave robust=none, or "
                "decode_trace=null"
            )


@contextmanager
def _watched() -> Iterator[tuple[Tell, Callable[[], None]]]:
    """What shows progress, and what raises if Ctrl-C came while a search kept its best."""
    with ctrl_c_counted() as pressed, Console(stderr=True).status("preparing") as status:

        def check() -> None:
            if pressed:
                raise KeyboardInterrupt

        def tell(what: str) -> None:
            status.update(what)

        yield tell, check
