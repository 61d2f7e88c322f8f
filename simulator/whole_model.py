"""Seconds of a whole request batch: prompts through all layers, then one token at a time, from the layers' replay.

    pass      sum over MoE layers of (attention + router + shared + dispatch + experts + combine) + dense layers + head
    overlap   two_batch: the pass is cut into two halves; while one communicates the other computes, so a layer takes
              2 max(communication, computation) of a half, and the first half's shorter part once more to start
    request   one pass over the prompts + one pass for each token after the first

Every phase of every layer and batch ends when its slowest rank does (`SimulatedCluster`); means are taken after that.
Shared experts run while rows are dispatched if that hides them, and add what is longer.
"""

from dataclasses import dataclass

import numpy as np

from grace_opt.cost import LayerTime
from grace_opt.model import MoEModel
from grace_opt.topology import Topology
from simulator.backbone import BackboneTime, Pass, backbone_time

OVERLAPS = ("none", "two_batch")


@dataclass(frozen=True)
class Workload:
    """A batch of requests that start and end together.

    Attributes:
        sequences: of all ranks together.
        prompt_tokens, generated_tokens: of each.
    """

    sequences: int
    prompt_tokens: int
    generated_tokens: int

    def __post_init__(self) -> None:
        for field in ("sequences", "prompt_tokens", "generated_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"workload.{field} must be at least 1, got {getattr(self, field)}")

    def sequences_per_rank(self, num_ranks: int) -> int:
        """Sequences of one rank."""
        if self.sequences % num_ranks:
            raise ValueError(f"workload.sequences={self.sequences} must be a multiple of the {num_ranks} ranks")
        return self.sequences // num_ranks

    def prefill(self, num_ranks: int) -> Pass:
        """The pass over the prompts."""
        return Pass(self.sequences_per_rank(num_ranks), self.prompt_tokens)

    def decode(self, num_ranks: int) -> Pass:
        """The middle one of the passes that follow."""
        return Pass(self.sequences_per_rank(num_ranks), 1, self.prompt_tokens + self.generated_tokens // 2)


@dataclass(frozen=True)
class PassTime:
    """Seconds of one forward pass, and what they consist of; with overlap the parts sum to more than the whole."""

    total_s: float
    all_to_all_s: float
    experts_s: float
    idle_s: float
    backbone_s: float


@dataclass(frozen=True)
class EndToEnd:
    """Seconds of a workload.

    Attributes:
        prefill: the first pass; its total is the time to the first token.
        decode: one pass after it; its total is the time per token.
        passes: how many of those.
        tokens_per_s: generated tokens of all sequences over the whole time.
    """

    prefill: PassTime
    decode: PassTime
    passes: int
    tokens_per_s: float

    @property
    def total_s(self) -> float:
        return self.prefill.total_s + self.passes * self.decode.total_s

    def part_s(self, name: str) -> float:
        """Seconds of a part (`all_to_all_s`, `experts_s`, `idle_s`, `backbone_s`) over the whole workload."""
        return float(getattr(self.prefill, name) + self.passes * getattr(self.decode, name))


def pass_time(model: MoEModel, layers: LayerTime, around: BackboneTime, overlap: str = "none") -> PassTime:
    """One forward pass.

    Args:
        layers: of all MoE layers, for the tokens of the pass (with two_batch: of half of them).
        around: of the backbone, for the same tokens.
        overlap: one of OVERLAPS.

    Raises:
        ValueError: there is no such overlap.
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap must be one of {', '.join(OVERLAPS)}, got {overlap!r}")
    communication_L = layers.dispatch_s + layers.combine_s
    computation_L = around.attention_s + around.router_s + layers.experts_s
    halves = 1 if overlap == "none" else 2
    if overlap == "none":
        dispatch_L = np.maximum(layers.dispatch_s, around.shared_s)
        total = float((computation_L + dispatch_L + layers.combine_s).sum()) + around.other_s
    else:
        computation_L = computation_L + around.shared_s
        start = min(float(communication_L[0]), float(computation_L[0]))
        total = float(2 * np.maximum(communication_L, computation_L).sum()) + start + 2 * around.other_s
    surrounding = len(communication_L) * (around.attention_s + around.router_s + around.shared_s) + around.other_s
    return PassTime(
        total,
        halves * float(communication_L.sum()),
        halves * float(layers.experts_s.sum()),
        halves * float(layers.idle_s.sum()),
        halves * surrounding,
    )


def end_to_end(
    model: MoEModel, topology: Topology, workload: Workload, prefill: LayerTime, decode: LayerTime,
    overlap: str = "none", tables: bool = False,
) -> EndToEnd:  # fmt: skip
    """The whole workload; the slowest kind of GPU decides the backbone's time.

    Args:
        prefill, decode: times of the MoE layers in batches of the pass's tokens per rank (half of them, if two
            batches overlap).
        tables: attention from measured tables where they have it.
    """
    halves = 1 if overlap == "none" else 2
    times = []
    for work, layers in (
        (workload.prefill(topology.num_ranks), prefill),
        (workload.decode(topology.num_ranks), decode),
    ):
        part = Pass(work.sequences / halves, work.tokens, work.context)
        wanted = part.num_tokens
        if not 0.5 * wanted <= layers.tokens_per_rank <= 1.5 * wanted:
            raise ValueError(
                f"the layers were timed with {layers.tokens_per_rank:.0f} tokens per rank, a pass has {wanted:.0f}"
            )
        kinds = [backbone_time(model, gpu, part, tables) for gpu in dict.fromkeys(topology.gpus)]
        around = max(kinds, key=lambda kind: kind.attention_s)
        times.append(pass_time(model, layers, around, overlap))
    passes = workload.generated_tokens - 1
    total = times[0].total_s + passes * times[1].total_s
    return EndToEnd(times[0], times[1], passes, workload.sequences * workload.generated_tokens / total)
