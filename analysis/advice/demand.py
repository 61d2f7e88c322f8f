"""What requests ask of the MoE layers: passes over prompts, passes that generate, and tokens that go through each.

A request of `context` prompt tokens and `generated_tokens` takes of every layer

    context * seconds a token of prefill  +  generated_tokens * seconds a token of decode

where seconds a token are a batch's layer time over the tokens of a rank in it. That sum is what plans are compared by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.whole_model import PASSES, Passes
from grace_opt.problem import Problem


@dataclass(frozen=True, eq=False)
class Phase:
    """One of the passes.

    Attributes:
        name: prefill or decode.
        tokens_per_rank: of a batch, as asked for.
        batch_tokens: of a rank in a batch of the fit part: fewer, where that has not so many.
        request_tokens: of a request that go through such passes.
        fit, held_out: the parts of its recording to plan and to judge on; the very same of all phases, or of each
            its own.
    """

    name: str
    tokens_per_rank: int
    batch_tokens: float
    request_tokens: int
    fit: Problem
    held_out: Problem

    @property
    def passes_of_request(self) -> float:
        """Batches of a rank that one request takes."""
        return self.request_tokens / self.batch_tokens


def phases_of(
    parts_of: Mapping[str, Mapping[str, Problem]], passes: Passes, plan_for: Sequence[str], generated_tokens: int
) -> tuple[Phase, ...]:
    """The phases to plan for.

    Args:
        parts_of: `fit` and `held_out` of the recording of each pass.

    Raises:
        ValueError: none, unknown ones, or one twice; or no generated tokens.
    """
    if not plan_for or len(set(plan_for)) < len(plan_for) or not set(plan_for) <= set(PASSES):
        raise ValueError(f"plan_for must be [prefill], [decode] or [prefill,decode], got {list(plan_for)}")
    if generated_tokens < 1:
        raise ValueError(f"generated_tokens must be at least 1, got {generated_tokens}")
    asked = {"prefill": passes.prefill_tokens, "decode": passes.decode_tokens}
    of_request = {"prefill": passes.context, "decode": generated_tokens}
    phases = []
    for name in (name for name in PASSES if name in plan_for):
        fit = parts_of[name]["fit"]
        mean = fit.trace.num_tokens / fit.topology.num_ranks
        size = asked[name] or int(np.ceil(mean))
        phases.append(Phase(name, size, min(float(size), mean), of_request[name], **parts_of[name]))
    return tuple(phases)
