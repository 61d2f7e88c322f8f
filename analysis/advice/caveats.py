"""What an advice does not consider, as far as that is true of this run."""

from collections.abc import Sequence
from typing import Any

from analysis.advice.demand import Phase
from analysis.advice.domain_fade import Fade, tokens_of_domains
from analysis.advice.ledger import Ledger
from analysis.results import Row


def not_considered(
    phases: Sequence[Phase],
    about: dict[str, Any],
    ledger: Ledger,
    fades: Sequence[Fade],
    stopped: bool,
    all_to_all: bool,
) -> list[str]:
    """Sentences, those that weigh most first.

    Args:
        ledger: the plans among which one was chosen, with their rows.
        fades: what was found about unseen domains.
        stopped: whether a search ran out of its time.
        all_to_all: whether tokens travel to those ranks only that need them.
    """
    lines = []
    rows = [row for rows in ledger.rows.values() for row in rows]
    if any(phase.held_out.trace.synthetic for phase in phases):
        lines.append("the trace is SYNTHETIC: no model produced it, so neither is the gain one of a real model")
    measured = f"; unmeasured: {about['assumed']}" if about["assumed"] else ""
    lines.append(f"all times are predictions of the cost model, under the {about['scheme']} scheme{measured}")
    if not all_to_all:
        lines.append("how the engine's collective gathers: priced as a row from each token to every rank")
    lines += _other_phase(phases)
    lines += _short_batches(rows, phases)
    domains = dict.fromkeys(name for phase in phases for part in (phase.fit, phase.held_out)
                            for name in tokens_of_domains(part.trace))  # fmt: skip
    if not fades:
        lines.append(_no_fade(list(domains)))
    elif len(fades) < len(domains):
        lines.append(f"domain shift for the other {len(domains) - len(fades)} domains")
    if phases[0].fit.model.backbone is None:
        lines.append("time to first token and per token: model.backbone describes no attention")
    lines += [
        "communication hidden behind computation: MoE phases are added up; overlap makes gains smaller",
        "which requests an engine batches together, and lengths other than those recorded",
        "drift over time: a recording is one time; record again and run this again when traffic changes",
    ]
    if any(row["redundant_experts"] for row in rows):
        lines.append("what the memory of redundant experts would bring as key-value cache")
    if (tried := len(ledger.candidates) - 1) > 1:
        lines.append(f"that the best of {tried} plans was picked on the very sequences it is judged on")
    if stopped:
        lines.append("better plans that a longer search finds (plan_seconds)")
    return lines


def _other_phase(phases: Sequence[Phase]) -> list[str]:
    recorded = {phase.name: phase.held_out.trace.phase for phase in phases}
    other = [name for name, of in recorded.items() if of not in ("mixed", name)]
    if other:
        return [f"how tokens of {other[0]} choose: the recording is of {recorded[other[0]]} and stands for both"]
    if "mixed" in recorded.values() and len(phases) > 1:
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


def _no_fade(domains: Sequence[str]) -> str:
    if len(domains) == 1:
        return f"domain shift: all sequences are of one domain ({domains[0]})"
    return "domain shift: no plan is recommended, or no domain is in both parts, or domains=0"
