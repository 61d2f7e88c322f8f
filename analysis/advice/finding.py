"""What was decided, and the object `advice` of result.json that says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.advice.bootstrap import FEWEST_SEQUENCES, LEVEL, Resamples
from analysis.advice.candidates import Candidate
from analysis.advice.caveats import not_considered
from analysis.advice.choice import Choice, Comparison, Gain
from analysis.advice.domain_fade import Fade
from analysis.advice.engine_terms import field_of
from analysis.advice.judging import Judge
from analysis.advice.ledger import Ledger
from analysis.whole_model import Passes
from grace_opt.trace import Trace

TERMS = ("layer_time_s", "destination_ranks_per_token", "cross_node_bytes_per_token", "load_max_over_mean")


@dataclass(frozen=True, eq=False)
class Finding:
    """The decisions.

    Attributes:
        default: the engine with no plan.
        best: the best candidate of each redundancy.
        redundancy: the one that was taken.
        choice: a candidate for each phase.
        gain: of the choice over the default.
        apart: of a plan for each phase over the best one for all; None with one phase.
        same: whether a plan for each phase would be the same plan.
        separate: whether a plan for each phase was taken.
        pays: whether the choice surely saves more than min_gain.
    """

    comparison: Comparison
    resamples: Resamples
    default: Candidate
    best: Mapping[int, Candidate]
    redundancy: int
    choice: Choice
    gain: Gain
    apart: Gain | None
    same: bool
    separate: bool
    pays: bool
    min_gain: float

    @classmethod
    def of(
        cls, comparison: Comparison, resamples: Resamples, default: Candidate, best: Mapping[int, Candidate],
        redundancy: int, shared: Choice, apart: Choice | None, min_gain: float,
    ) -> "Finding":  # fmt: skip
        """Decide between one plan and one for each phase, and whether to take any."""
        more = None if apart is None else comparison.gain(shared, apart)
        separate = more is not None and more.pays(min_gain)
        choice = apart if separate and apart is not None else shared
        same = apart is not None and all(apart[phase] is one for phase, one in shared.items())
        gain = comparison.gain(comparison.shared(default), choice)
        pays = gain.pays(min_gain)
        return cls(
            comparison,
            resamples,
            default,
            best,
            redundancy,
            choice,
            gain,
            more,
            same,
            separate and pays,
            pays,
            min_gain,
        )


def finding(
    found: Finding, fades: Sequence[Fade], ledger: Ledger, judge: Judge, passes: Passes, trace: Trace,
    about: dict[str, Any], resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """The advice, of plain values only."""
    serving, phases, comparison = judge.serving, judge.phases, found.comparison
    most = max(candidate.redundancy for candidate in found.choice.values())
    eplb = next((one for one in ledger.candidates if (one.planner, one.redundancy) == ("eplb", most)), None)
    over_eplb = None
    if eplb is not None and any(one is not eplb for one in found.choice.values()):
        over_eplb = comparison.gain(comparison.shared(eplb), found.choice)
    default = comparison.shared(found.default)
    plans = {
        phase: {
            "plan": str(ledger.path(one)),
            "planner": one.planner,
            "goal": one.goal,
            "redundancy": one.redundancy,
            "slots": one.num_slots,
            **_gain(comparison.phase_gain(default, found.choice, phase)),
        }
        for phase, one in found.choice.items()
    }
    rows = [row for rows in ledger.rows.values() for row in rows]
    stopped = any(one.solution.status == "feasible" for one in ledger.candidates)
    return {
        "verdict": "use" if found.pays else "leave",
        "why": None if found.pays else _why(found, judge),
        "engine": serving.engine,
        "engine_name": serving.name,
        "all_to_all": serving.all_to_all,
        "asked": about,
        "request": {phase.name: phase.request_tokens for phase in phases},
        "min_gain": found.min_gain,
        "tried": len(ledger.candidates) - 1,
        "plans": plans,
        "gain": {**_gain(found.gain), **_how_sure(found, judge, resamples)},
        "gain_over_eplb": None if over_eplb is None else _gain(over_eplb),
        "beats_eplb": over_eplb is not None and over_eplb.pays(found.min_gain),
        "separate": {
            "advised": found.separate,
            "same": found.apart is not None and found.same,
            "gain": None if found.apart is None else _gain(found.apart),
        },
        "redundancy": _redundancy(found, judge),
        "balance_field": field_of(serving.engine),
        "terms": _terms(found, eplb, ledger, judge, passes),
        "domain_shift": [
            {"domain": one.domain, "sequences": one.sequences, "seen": one.seen, "unseen": one.unseen} for one in fades
        ],
        "not_considered": not_considered(
            trace,
            judge.held_out.model,
            about,
            rows,
            phases,
            fades,
            len(ledger.candidates) - 1,
            stopped,
            serving.all_to_all,
        ),
        "notes": _notes(found, judge),
        "next": _next(found, ledger, judge),
    }


def _gain(gain: Gain) -> dict[str, float | None]:
    sure = gain.sure
    return {"mean": gain.mean, "low": None if sure is None else sure.low, "high": None if sure is None else sure.high}


def _how_sure(found: Finding, judge: Judge, asked: int) -> dict[str, Any]:
    sequences = judge.held_out.trace.num_sequences
    why = None
    if not found.resamples.num:
        why = f"{sequences} held-out sequences are fewer than {FEWEST_SEQUENCES}" if asked else "resamples=0"
    return {"level": LEVEL, "resamples": found.resamples.num, "resamples_asked": asked, "no_interval": why}


def _why(found: Finding, judge: Judge) -> str:
    serving, gain = judge.serving, found.gain
    if all(one is found.default for one in found.choice.values()):
        text = f"No plan that was tried is faster than {serving.name}'s default, experts in order."
    elif gain.mean <= found.min_gain:
        text = f"No plan that was tried saves more than {found.min_gain:.1%} (min_gain)."
    else:
        text = f"What the best plan saves is not surely more than {found.min_gain:.1%} (min_gain)."
    if not serving.all_to_all:
        text += " Every rank gets all tokens, so a placement changes no traffic, only load."
    elif judge.held_out.topology.num_nodes == 1:
        loads = [float(row["load_max_over_mean"]) for row in found.comparison.rows[found.default.name]]
        text += f" All rows stay inside one node, and the busiest rank has {max(loads):.2f} times the mean load."
    return text


def _redundancy(found: Finding, judge: Judge) -> dict[str, Any]:
    comparison, model, topology = found.comparison, judge.held_out.model, judge.held_out.topology
    default = comparison.shared(found.default)
    chosen = max(one.redundancy for one in found.choice.values())
    slots = max(one.num_slots for one in found.choice.values())
    extra = (slots - model.num_experts) * model.num_layers * model.expert_bytes
    widest = max(one.solution.plan.placement.slots.shape[2] for one in found.choice.values())
    return {
        "chosen": chosen,
        "redundant_experts": slots - model.num_experts,
        "bytes_per_rank": extra / topology.num_ranks,
        "bytes": extra,
        "weights_bytes_per_rank": model.rank_bytes(widest),
        "memory_bytes_per_rank": float(topology.memory_bytes.min()),
        "no_more": sorted(redundancy for redundancy in found.best if redundancy > found.redundancy),
        "curve": [
            {
                "per_rank": redundancy, "planner": one.planner,
                **{("gain" if key == "mean" else key): value for key, value in _gain(
                    comparison.gain(default, comparison.shared(one))).items()},
            }
            for redundancy, one in sorted(found.best.items())
        ],
    }  # fmt: skip


def _terms(
    found: Finding, eplb: Candidate | None, ledger: Ledger, judge: Judge, passes: Passes
) -> dict[str, dict[str, dict[str, Any]]]:
    """phase -> default, eplb, advised -> figures."""
    fields = (*TERMS, "load_mean_over_max", "load_sum_of_means_over_sum_of_maxima", "load_excess_over_mean")
    steps: dict[str, dict[str, float]] = {}
    terms: dict[str, dict[str, dict[str, Any]]] = {}
    for index, phase in enumerate(judge.phases):
        shown = {"default": found.default, "eplb": eplb, "advised": found.choice[phase.name]}
        terms[phase.name] = {}
        for name, one in shown.items():
            if one is None or (name == "eplb" and one is shown["advised"]):
                continue
            if one.name not in steps:
                steps[one.name] = judge.whole_model(one, passes)
            row = ledger.rows[one.name][index]
            whole = {"step_s": steps[one.name].get(phase.name)}
            spreads = {}
            if name == "advised" and found.resamples.num:
                for field in (
                    "destination_ranks_per_token",
                    "cross_node_bytes_per_token",
                    field_of(judge.serving.engine),
                ):
                    sure = found.resamples.spread(one, phase.name, field)
                    spreads[f"{field}_interval"] = None if sure is None else [sure.low, sure.high]
            terms[phase.name][name] = {**{field: float(row[field]) for field in fields}, **whole, **spreads}
    return terms


def _notes(found: Finding, judge: Judge) -> list[str]:
    """What the engine will not do of the plans that are advised."""
    module = judge.serving.module
    if not found.pays or module is None:
        return []
    return list(dict.fromkeys(line for one in found.choice.values() for line in module.ignores(one.solution.plan)))


def _next(found: Finding, ledger: Ledger, judge: Judge) -> list[str]:
    if not found.pays:
        return []
    paths = list(dict.fromkeys(str(ledger.path(one)) for one in found.choice.values()))
    engine = judge.serving.engine
    if judge.serving.module is None:
        ranks = judge.held_out.topology.num_ranks
        return [f"torchrun --nproc-per-node {ranks} -m runtime generate plan={path} checkpoint=FILE" for path in paths]
    several = len(paths) > 1
    return [
        f"grace-opt export plan={path} engine={engine} output=outputs/export{f'-{phase}' if several else ''}"
        for path, phase in zip(paths, found.choice, strict=False)
    ]
