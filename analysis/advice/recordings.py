"""The recordings an advice stands on: one for all passes, or one of prompts and one of passes that generate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grace_opt.load_history import LoadHistory
from grace_opt.load_history_file import read_trace_or_loads
from grace_opt.problem import Problem
from grace_opt.trace import Trace


def recordings_of(trace: Trace | LoadHistory, decode_trace: str | None, plan_for: Sequence[str]) -> dict[str, Trace]:
    """That of each pass.

    Args:
        decode_trace: file of the one for decode; None: `trace` is for both.

    Raises:
        ValueError: one of them holds counts only, or the other pass; or none is planned for.
        FileNotFoundError: there is no such file.
    """
    first = _with_tokens(trace, "the trace")
    if decode_trace is None:
        return {"prefill": first, "decode": first}
    if set(plan_for) != {"prefill", "decode"}:
        raise ValueError(
            f"decode_trace goes with plan_for=[prefill,decode], got {list(plan_for)}: for one pass give its recording "
            "as trace.path"
        )
    if not Path(decode_trace).is_file():
        raise FileNotFoundError(f"decode_trace={decode_trace} does not exist: give a recording, or null for none")
    second = _with_tokens(read_trace_or_loads(decode_trace), "decode_trace")
    for field, recording, other in (("trace", first, "decode"), ("decode_trace", second, "prefill")):
        if recording.phase == other:
            raise ValueError(
                f"{field} must be a recording of {'prefill' if other == 'decode' else 'decode'}, but it holds {other} "
                f"({recording.source}): trace.path is for prompts, decode_trace for passes that generate"
            )
    return {"prefill": first, "decode": second}


def described_recording(parts: Mapping[str, Problem]) -> dict[str, Any]:
    """A further recording, in the words of `analysis.results.describe`."""
    trace = parts["fit"].trace
    return {
        "trace": trace.source,
        "trace_names_model": bool(trace.model),
        "phase": trace.phase,
        "synthetic": trace.synthetic,
        "tokens": {name: part.trace.num_tokens for name, part in parts.items()},
        "sequences": {name: part.trace.num_sequences for name, part in parts.items()},
    }


def _with_tokens(trace: Trace | LoadHistory, field: str) -> Trace:
    if isinstance(trace, LoadHistory):
        raise ValueError(
            f"advise tells times, which need token-level routing, but {field} holds counts only ({trace.source}): "
            "record tokens, or take `grace-opt plan planner=eplb`, which plans and tells the balance from counts"
        )
    return trace
