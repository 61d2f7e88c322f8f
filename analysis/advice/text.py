"""An advice in plain sentences, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from analysis.advice.engine_terms import TITLE
from analysis.report import console

Advice = Mapping[str, Any]
TIME_TO = {"prefill": "time to first token", "decode": "time per token"}


def print_advice(advice: Advice) -> None:
    """Headline, gains, a table in the engine's terms, redundancy, phases, domains, what was left out, what to type."""
    out = console()
    for line in (_asked(advice), "", *_headline(advice), ""):
        out.print(line, highlight=False, markup=False)
    out.print(_table(advice))
    sentences = [_redundancy(advice), _separate(advice), _domains(advice)]
    for line in ("", *(line for line in (_whole_model(advice), *sentences) if line)):
        out.print(line, highlight=False, markup=False)
    for title, lines in (("Not considered:", advice["not_considered"]), ("Know:", advice["notes"])):
        if lines:
            out.print(title, highlight=False)
        for line in lines:
            out.print(f"- {line}", highlight=False, markup=False)
    if advice["next"]:
        out.print("Next:", highlight=False)
    for line in advice["next"]:
        out.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def percent(share: float) -> str:
    """0.1234 as 12.3 %; nothing is ever -0.0 %."""
    return f"{round(share * 100, 1) + 0.0:.1f} %"


def between(gain: Mapping[str, Any]) -> str:
    """A gain with its interval."""
    if gain["low"] is None:
        return percent(gain["mean"])
    return f"{percent(gain['mean'])} ({percent(gain['low']).removesuffix(' %')} to {percent(gain['high'])})"


def _asked(advice: Advice) -> str:
    about = advice["asked"]
    kind = "SYNTHETIC trace" if about["synthetic"] else "recording"
    gathers = "" if advice["all_to_all"] else ", which gathers all tokens on every rank"
    lines = [
        f"{about['model']} on {about['topology']} with {advice['engine_name']}{gathers}",
        f"{kind}: {_recording(about)}",
    ]
    if "decode" in about:
        lines.append(f"decode: {_recording(about['decode'])}")
    return "\n".join(lines)


def _recording(about: Mapping[str, Any]) -> str:
    sequences = about["sequences"]
    return f"{about['trace']}; planned on {sequences['fit']} sequences, judged on {sequences['held_out']} others"


def _headline(advice: Advice) -> list[str]:
    gain, name = advice["gain"], advice["engine_name"]
    request = advice["request"]
    of = " + ".join(f"{tokens} {'prompt' if phase == 'prefill' else 'generated'}" for phase, tokens in request.items())
    saves = f"it saves {between(gain)} of the time a request ({of} tokens) spends in MoE layers"
    against = f", against {name}'s default, experts in order."
    lines = []
    if advice["verdict"] == "use":
        plans = {phase: entry["planner"] for phase, entry in advice["plans"].items()}
        number = advice["redundancy"]["chosen"]
        copies = f"{number} redundant expert{'s' * (number != 1)} per rank" if number else "no redundant experts"
        which = "separate plans for prefill and decode" if advice["separate"]["advised"] else _one(plans)
        planners = " and ".join(dict.fromkeys(plans.values()))
        lines += [f"USE A PLACEMENT: planner {planners}, {copies}, {which}.", saves[0].upper() + saves[1:] + against]
        lines += _against_eplb(advice)
        if planners == "eplb" and advice["engine"] not in ("omni", "grace"):
            lines.append(f"{_balancer(advice)} may be switched on instead: it makes this plan from the loads it sees.")
    else:
        lines += [f"LEAVE IT AS IT IS. {advice['why']}"]
        if gain["mean"]:
            lines.append(f"The best of {advice['tried']} plans: {saves}{against}")
    lines.append(_interval(advice))
    return lines


def _one(plans: Mapping[str, str]) -> str:
    return "one plan for prefill and decode" if len(plans) > 1 else f"for {next(iter(plans))}"


def _against_eplb(advice: Advice) -> list[str]:
    gain = advice["gain_over_eplb"]
    if gain is None:
        return []
    surely = "" if advice["beats_eplb"] else f": not surely more than {percent(advice['min_gain'])}"
    return [f"Against {_balancer(advice)} in the same memory it saves {between(gain)}{surely}."]


def _balancer(advice: Advice) -> str:
    own = advice["engine"] not in ("omni", "grace")
    return f"EPLB, {advice['engine_name']}'s own balancer," if own else "EPLB"


def _interval(advice: Advice) -> str:
    made, sequences = advice["gain"]["resamples"], advice["asked"]["sequences"]["held_out"]
    if not made:
        return f"No interval can be given: {advice['gain']['no_interval']}."
    asked = advice["gain"]["resamples_asked"]
    why = "" if made == asked else f" ({asked} were asked for; interval_seconds allowed no more)"
    return f"(In brackets 90 % of {made} bootstrap resamples of the {sequences} held-out sequences{why}.)"


def _table(advice: Advice) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("held out")
    columns = [name for name in ("default", "eplb", "advised") if all(name in of for of in advice["terms"].values())]
    heads = {"default": "default", "eplb": "EPLB", "advised": "advised" if advice["verdict"] == "use" else "best plan"}
    for phase in advice["terms"]:
        for name in columns:
            table.add_column(f"{phase}\n{heads[name]}", justify="right", no_wrap=True)
    field = advice["balance_field"]
    figures = [
        ("MoE layer, us", "layer_time_s", 1e6, "{:,.0f}"),
        (TITLE[field], field, 1.0, "{:.3f}"),
        ("ranks a token goes to", "destination_ranks_per_token", 1.0, "{:.2f}"),
        ("kB between nodes, a token and layer", "cross_node_bytes_per_token", 1e-3, "{:.2f}"),
        (", ".join(TIME_TO[phase] for phase in advice["terms"]) + ", ms", "step_s", 1e3, "{:,.2f}"),
    ]
    for title, key, unit, text in figures:
        values = [advice["terms"][phase][name].get(key) for phase in advice["terms"] for name in columns]
        if any(values):
            table.add_row(title, *("" if value is None else text.format(value * unit) for value in values))
    return table


def _whole_model(advice: Advice) -> str:
    """What is saved with all that surrounds the experts."""
    gains = {phase: terms["advised"].get("step_gain") for phase, terms in advice["terms"].items()}
    told = [f"{TIME_TO[phase]} {between(gain)}" for phase, gain in gains.items() if gain is not None]
    return f"Of the whole model's time it saves: {', '.join(told)}." if told else ""


def _redundancy(advice: Advice) -> str:
    redundancy = advice["redundancy"]
    curve = ", ".join(f"{of['per_rank']}: {percent(of['gain'])}" for of in redundancy["curve"])
    chosen = redundancy["chosen"]
    text = f"Redundant experts per rank and what is saved: {curve}."
    if redundancy["no_more"]:
        text += f" More than {chosen} do{'es' * (chosen == 1)} not surely save another {percent(advice['min_gain'])}."
    elif chosen:
        text += f" More than {chosen} was not tried."
    if chosen and advice["verdict"] == "use":
        keys = ("bytes_per_rank", "bytes", "weights_bytes_per_rank", "memory_bytes_per_rank")
        rank, all_ranks, weights, room = (_size(redundancy[key]) for key in keys)
        cost = f"{chosen} cost{'s' * (chosen == 1)} {rank} per rank, {all_ranks} in all"
        text += f" {cost}; weights then take {weights} of {room}."
    return text


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 5e7 else f"{num_bytes / 1e6:.3g} MB"


def _separate(advice: Advice) -> str:
    separate = advice["separate"]
    if separate["gain"] is None:
        return ""
    if separate["same"]:
        return "No other plan in this memory is better for prefill or for decode alone: one does for both."
    gain = between(separate["gain"])
    if separate["advised"]:
        return f"Separate plans save {gain} more than one for both: for instances of their own for prefill and decode."
    return f"Separate plans for prefill and decode would save {gain} more than one for both: not worth a second plan."


def _domains(advice: Advice) -> str:
    fades = advice["domain_shift"]
    if not fades:
        return ""
    worst = min(fades, key=lambda of: of["unseen"])
    others = ", ".join(f"{of['domain']} {percent(of['seen'])} / {percent(of['unseen'])}" for of in fades if of != worst)
    text = (
        f"Domain shift: on {worst['domain']} it saves {percent(worst['seen'])} with such text in the recording, "
        f"{percent(worst['unseen'])} without (batches of that text alone; the worst domain"
    )
    text += f"; {others})." if others else ")."
    return text + (" Unseen text can take longer than by default: record all you serve." if worst["unseen"] < 0 else "")
