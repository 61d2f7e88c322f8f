"""Seconds of a whole model: prompts through all layers, then one token at a time, from the layers' replay.

    pass      sum over MoE layers of (attention + router + dispatch, shared experts meanwhile + experts + combine)
              + dense layers + head; two overlapping batches take turns in the MoE layers (`simulator.overlap`), and
              dense layers and head are paid by each half
    request   one pass over the prompts + one pass for each token after the first

Every phase of every layer and batch ends when its slowest rank does. Passes are put together batch by batch; means over
batches are taken after that. Attention runs where sequences live, and the rank that holds most of a batch decides.
"""

from dataclasses import dataclass

from grace_opt.model import MoEModel
from grace_opt.topology import Topology
from simulator.backbone import BackboneTime, Pass, backbone_time
from simulator.overlap import PhaseTimes, passes_s


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
    """Seconds of one forward pass, mean over batches, and what they consist of.

    The parts sum to more than the whole where something is hidden behind something else.

    Attributes:
        total_s: the pass.
        all_to_all_s, experts_s, backbone_s: dispatch and combine, routed experts, all that surrounds them.
        idle_s: mean wait for the slowest rank's experts, contained in experts_s.
        measured: attention and dense parts are from measured tables, not from the roofline.
    """

    total_s: float
    all_to_all_s: float
    experts_s: float
    idle_s: float
    backbone_s: float
    measured: bool

    @property
    def hidden_s(self) -> float:
        """Seconds of the parts that pass behind others."""
        return max(0.0, self.all_to_all_s + self.experts_s + self.backbone_s - self.total_s)


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


def slowest_backbone(model: MoEModel, topology: Topology, work: Pass, tables: bool = False) -> BackboneTime:
    """Time of what surrounds the experts on the slowest kind of GPU, which decides.

    Raises:
        ValueError: the model has no backbone, or a size is longer than what was measured.
        MissingDataError: `tables` are asked for, but are not there for this GPU or these heads.
    """
    kinds = [backbone_time(model, gpu, work, tables) for gpu in dict.fromkeys(topology.gpus)]
    return max(kinds, key=lambda kind: kind.attention_s)


def pass_time(phases: PhaseTimes, around: BackboneTime, overlap: str = "none") -> PassTime:
    """One forward pass.

    Args:
        phases: of all MoE layers, in batches of the pass (with two_batch: in halves of them).
        around: of the backbone, for the same tokens.
        overlap: one of OVERLAPS.

    Raises:
        ValueError: there is no such overlap.
    """
    before_s = around.attention_s + around.router_s
    halves = 1 if overlap == "none" else 2
    total = passes_s(phases, before_s, around.shared_s, overlap).mean() + halves * around.other_s
    parts = (phases.dispatch_s + phases.combine_s, phases.experts_s, phases.idle_s)
    all_to_all, experts, idle = (halves * float(part_LB.sum(axis=0).mean()) for part_LB in parts)
    backbone = phases.num_layers * (before_s + around.shared_s) + around.other_s
    return PassTime(float(total), all_to_all, experts, idle, halves * backbone, around.measured)


def end_to_end(
    model: MoEModel, topology: Topology, workload: Workload, prefill: PhaseTimes, decode: PhaseTimes,
    overlap: str = "none", tables: bool = False,
) -> EndToEnd:  # fmt: skip
    """The whole workload.

    Args:
        prefill, decode: times of the MoE layers in batches of the pass's tokens per rank (in halves of them, if two
            batches overlap).
        tables: attention from measured tables where they have it.
    """
    halves = 1 if overlap == "none" else 2
    times = []
    for work, phases in (
        (workload.prefill(topology.num_ranks), prefill),
        (workload.decode(topology.num_ranks), decode),
    ):
        part = Pass(work.sequences / halves, work.tokens, work.context)
        wanted, timed = part.num_tokens, float(phases.tokens_of_rank.mean())
        if not 0.5 * wanted <= timed <= 1.5 * wanted:
            raise ValueError(f"the layers were timed with {timed:.0f} tokens per rank, a pass has {wanted:.0f}")
        times.append(pass_time(phases, slowest_backbone(model, topology, part, tables), overlap))
    passes = workload.generated_tokens - 1
    total = times[0].total_s + passes * times[1].total_s
    return EndToEnd(times[0], times[1], passes, workload.sequences * workload.generated_tokens / total)
