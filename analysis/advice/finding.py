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
from analysis.advice.phase_terms import phase_terms, plain


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
    found: Finding, fades: Sequence[Fade], ledger: Ledger, judge: Judge, about: dict[str, Any], resamples: int
) -> dict[str, Any]:
    """The advice, of plain values only."""
    serving, phases, comparison = judge.serving, judge.phases, found.comparison
    eplb = _eplb(found, ledger)
    over_eplb = None
    if eplb is not None and any(one is not eplb[phase] for phase, one in found.choice.items()):
        over_eplb = comparison.gain(eplb, found.choice)
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
        "plans": _plans(found, ledger),
        "gain": {**plain(found.gain), **_how_sure(found, judge, resamples)},
        "gain_over_eplb": None if over_eplb is None else plain(over_eplb),
        "beats_eplb": over_eplb is not None and over_eplb.pays(found.min_gain),
        "separate": {
            "advised": found.separate,
            "same": found.apart is not None and found.same,
            "gain": None if found.apart is None else plain(found.apart),
        },
        "redundancy": _redundancy(found, judge),
        "balance_field": field_of(serving.engine),
        "terms": phase_terms(comparison, found.resamples, found.default, eplb, found.choice, serving.engine),
        "domain_shift": [
            {"domain": one.domain, "sequences": one.sequences, "seen": one.seen, "unseen": one.unseen} for one in fades
        ],
        "not_considered": not_considered(phases, about, ledger, fades, stopped, serving.all_to_all),
        "notes": _notes(found, judge),
        "next": _next(found, ledger, judge),
    }


def _eplb(found: Finding, ledger: Ledger) -> Choice | None:
    """The engine's own balancer in the memory of the choice: for each phase apart where the choice is, else its plan
    that suits all phases best."""
    most = max(candidate.redundancy for candidate in found.choice.values())
    own = [one for one in ledger.candidates if (one.planner, one.redundancy) == ("eplb", most)]
    if not own:
        return None
    comparison = found.comparison
    return comparison.best_for_each_phase(own) if found.separate else comparison.shared(comparison.best(own))


def _plans(found: Finding, ledger: Ledger) -> dict[str, dict[str, Any]]:
    default = found.comparison.shared(found.default)
    return {
        phase: {
            "plan": str(ledger.path(one)),
            "planner": one.planner,
            "goal": one.goal,
            "redundancy": one.redundancy,
            "slots": one.num_slots,
            **plain(found.comparison.phase_gain(default, found.choice, phase)),
        }
        for phase, one in found.choice.items()
    }


def _how_sure(found: Finding, judge: Judge, asked: int) -> dict[str, Any]:
    sequences = judge.fewest_sequences
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
    elif judge.topology.num_nodes == 1:
        loads = [float(row["load_max_over_mean"]) for row in found.comparison.rows[found.default.name]]
        text += f" All rows stay inside one node, and the busiest rank has {max(loads):.2f} times the mean load."
    return text


def _redundancy(found: Finding, judge: Judge) -> dict[str, Any]:
    comparison, model, topology = found.comparison, judge.model, judge.topology
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
                **{("gain" if key == "mean" else key): value for key, value in plain(
                    comparison.gain(default, comparison.shared(one))).items()},
            }
            for redundancy, one in sorted(found.best.items())
        ],
    }  # fmt: skip


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
        ranks = judge.topology.num_ranks
        return [f"torchrun --nproc-per-node {ranks} -m runtime generate plan={path} checkpoint=FILE" for path in paths]
    several = len(paths) > 1
    return [
        f"grace-opt export plan={path} engine={engine} output=outputs/export{f'-{phase}' if several else ''}"
        for path, phase in zip(paths, found.choice, strict=False)
    ]
