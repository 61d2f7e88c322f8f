"""What an advice does not consider, as far as that is true of this run."""

from collections.abc import Sequence
from typing import Any

from analysis.advice.demand import Phase
from analysis.advice.domain_fade import Fade
from analysis.results import Row
from grace_opt.model import MoEModel
from grace_opt.trace import Trace


def not_considered(
    trace: Trace,
    model: MoEModel,
    about: dict[str, Any],
    rows: Sequence[Row],
    phases: Sequence[Phase],
    fades: Sequence[Fade],
    num_candidates: int,
    stopped: bool,
    all_to_all: bool,
) -> list[str]:
    """Sentences, those that weigh most first.

    Args:
        rows: priced ones of the held-out part.
        fades: what was found about unseen domains.
        num_candidates: plans among which one was chosen.
        stopped: whether a search ran out of its time.
        all_to_all: whether tokens travel to those ranks only that need them.
    """
    lines = []
    if trace.synthetic:
        lines.append("the trace is SYNTHETIC: no model produced it, so neither is the gain one of a real model")
    measured = f"; unmeasured: {about['assumed']}" if about["assumed"] else ""
    lines.append(f"all times are predictions of the cost model, under the {about['scheme']} scheme{measured}")
    if not all_to_all:
        lines.append("how the engine's collective gathers: priced as a row from each token to every rank")
    lines += _other_phase(trace, phases)
    lines += _short_batches(rows, phases)
    if not fades:
        lines.append(_no_fade(trace))
    elif len(fades) < len(set(trace.domains.tolist())):
        lines.append(f"domain shift for the other {len(set(trace.domains.tolist())) - len(fades)} domains")
    if model.backbone is None:
        lines.append("time to first token and per token: model.backbone describes no attention")
    lines += [
        "communication hidden behind computation: MoE phases are added up; overlap makes gains smaller",
        "which requests an engine batches together, and lengths other than those recorded",
        "drift over time: a recording is one time; record again and run this again when traffic changes",
    ]
    if any(row["redundant_experts"] for row in rows):
        lines.append("what the memory of redundant experts would bring as key-value cache")
    if num_candidates > 1:
        lines.append(f"that the best of {num_candidates} plans was picked on the very sequences it is judged on")
    if stopped:
        lines.append("better plans that a longer search finds (plan_seconds)")
    return lines


def _other_phase(trace: Trace, phases: Sequence[Phase]) -> list[str]:
    other = [phase.name for phase in phases if trace.phase not in ("mixed", phase.name)]
    if other:
        return [f"how tokens of {other[0]} choose: the recording is of {trace.phase} and stands for both"]
    if trace.phase == "mixed" and len(phases) > 1:
        return ["that prefill and decode may choose differently: the recording does not tell them apart"]
    return []


def _short_batches(rows: Sequence[Row], phases: Sequence[Phase]) -> list[str]:
    lines = []
    for phase in phases:
        had = next(row["tokens_per_rank"] for row in rows if row["pass"] == phase.name)
        if had < 0.75 * phase.tokens_per_rank:
            lines.append(
                f"{phase.name} batches of {phase.tokens_per_rank:,} tokens per rank: the held-out part has {had:,.0f}"
            )
    return lines


def _no_fade(trace: Trace) -> str:
    numbers = set(trace.domains.tolist())
    if len(numbers) == 1:
        return (
            f"domain shift: all {trace.num_sequences} sequences are of one domain ({trace.domain_names[numbers.pop()]})"
        )
    return "domain shift: no plan is recommended, or no domain is in both parts, or domains=0"
