"""The sample model run by many ranks as a plan says, and greedy decoding by it or by one device.

Attention is data-parallel: every rank has sequences of its own, and a copy of the dense parts. Experts are
expert-parallel: a rank holds those of its slots and no others, and every layer is a collective of all ranks. So ranks
may have different numbers of sequences, even none, but all must make the same number of passes::

    engine = Engine.of_plan(plan, "outputs/sample/model.safetensors", "hierarchical")
    sequences = prefill(engine, tokens, max_length=17 + 8)      # tokens [B, 17] of this rank; one pass
    generated = decode(engine, sequences, steps=8)              # [B, 8]; eight passes

A `SampleMoE` takes the place of the engine on one device: what it generates is what all ranks must.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from grace_opt.placement import EMPTY
from grace_opt.plan import Plan
from runtime.layer import MoELayer, Watch
from runtime.sample.checkpoint import open_model
from runtime.sample.model import KeyValueCache, Layer, Output, Routed, SampleConfig, SampleMoE
from runtime.weights import read_experts

MODEL = "sample-moe"


@dataclass(frozen=True)
class Engine:
    """The sample model as one rank sees it; called like the model, together with all other ranks.

    Attributes:
        dense: embedding, attention, norms and routers; its layers have no experts.
        experts: the MoE block of every layer, of which this rank holds a part.
        watch: times "attention" (with norms and router), "dispatch", "experts" and "combine", each once a layer in
            every pass; then "attention" once more for the logits.
    """

    dense: SampleMoE
    experts: tuple[MoELayer, ...]
    watch: Watch = nullcontext

    @classmethod
    def of_plan(
        cls,
        plan: Plan,
        path: str | Path,
        scheme: str,
        device: torch.device | str = "cpu",
        watch: Watch = nullcontext,
    ) -> "Engine":
        """For the calling rank, which reads the dense parts and the experts of its own slots.

        Args:
            path: sample model, written by `runtime.sample.checkpoint.save_model`.
            scheme: one of `runtime.layer.DISPATCHERS`.
            watch: for example a `Stopwatch`; to time parts of a run apart, `replace(engine, watch=...)`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no sample model, or the plan is for another model or number of ranks.
        """
        dense = _read_dense(Path(path)).to(device).eval()
        check_plan(plan, dense.config, dist.get_world_size())
        experts = []
        for layer, slots in enumerate(plan.placement.slots[:, dist.get_rank()]):
            own = read_experts(path, layer, slots[slots != EMPTY].tolist(), device=device)
            experts.append(MoELayer.of_plan(plan, layer, scheme, own))
        return cls(dense, tuple(experts), watch)

    @property
    def config(self) -> SampleConfig:
        """Sizes of the model."""
        return self.dense.config

    @torch.no_grad()
    def __call__(self, tokens_BC: Tensor, caches: Sequence[KeyValueCache]) -> Output:
        """As `SampleMoE.forward` for this rank's sequences, with logits of the last position alone: [B, 1, V]."""
        x_BCD = functional.embedding(tokens_BC, self.dense.embedding)
        routed: list[Routed] = []
        for layer, experts, cache in zip(self.dense.layers, self.experts, caches, strict=True):
            assert isinstance(layer, Layer)
            with self.watch("attention"):
                x_BCD, rows_TD, of_layer = layer.attend_and_route(x_BCD, cache)
            x_BCD = x_BCD + experts(rows_TD, of_layer.expert_ids, of_layer.weights, self.watch).view_as(x_BCD)
            routed.append(of_layer)
        with self.watch("attention"):
            logits_B1V = self.dense.norm(x_BCD[:, -1:]) @ self.dense.embedding.T
        expert_ids = torch.stack([r.expert_ids for r in routed]).view(len(routed), *tokens_BC.shape, self.config.top_k)
        return Output(logits_B1V, expert_ids, torch.stack([r.loss for r in routed]).mean())


@dataclass
class Sequences:
    """B sequences of this rank, as far as they have been read.

    Attributes:
        caches: keys and values of each layer.
        logits: [B, V] for the token that follows.
        chosen: expert ids [L, T, K] of every pass, best first, T = B * positions of the pass; None if not asked for.
    """

    caches: list[KeyValueCache]
    logits: Tensor
    chosen: list[Tensor] | None = None


@torch.no_grad()
def prefill(model: Engine | SampleMoE, tokens_BC: Tensor, max_length: int, record: bool = False) -> Sequences:
    """Read C >= 1 tokens of every sequence, in one pass.

    Args:
        max_length: positions to have room for, those of `decode` included.
        record: keep the expert ids of this and later passes.
    """
    caches = [
        KeyValueCache.empty(model.config, len(tokens_BC), max_length, tokens_BC.device)
        for _ in range(model.config.num_layers)
    ]
    sequences = Sequences(caches, torch.empty(0), [] if record else None)
    _read(model, sequences, tokens_BC)
    return sequences


@torch.no_grad()
def decode(model: Engine | SampleMoE, sequences: Sequences, steps: int) -> Tensor:
    """Continue every sequence by its likeliest token, `steps` times: [B, steps]. Every step is one pass."""
    tokens = torch.empty(len(sequences.logits), steps, dtype=torch.long, device=sequences.logits.device)
    for step in range(steps):
        tokens[:, step] = sequences.logits.argmax(-1)
        _read(model, sequences, tokens[:, step : step + 1])
    return tokens


def generate(model: Engine | SampleMoE, tokens_BC: Tensor, steps: int) -> Tensor:
    """The `steps` tokens [B, steps] that follow each sequence [B, C], greedily."""
    return decode(model, prefill(model, tokens_BC, tokens_BC.shape[1] + steps), steps)


def check_plan(plan: Plan, config: SampleConfig, num_ranks: int) -> None:
    """Raise ValueError unless this plan can be executed with this sample model on so many ranks."""
    if plan.model != MODEL:
        raise ValueError(f"plan is for model {plan.model}, but the model run is {MODEL}: give a plan made for {MODEL}")
    layers, experts = tuple(range(config.num_layers)), config.num_experts
    if plan.layer_ids != layers or plan.num_experts != experts:
        raise ValueError(
            f"plan has {plan.num_experts} experts in layers {list(plan.layer_ids)}, but the model has {experts} "
            f"experts in layers {list(layers)}: make the plan from a trace of this model"
        )
    if plan.num_ranks != num_ranks:
        raise ValueError(
            f"plan is for {plan.num_ranks} ranks, but {num_ranks} processes run: start {plan.num_ranks} processes"
        )


def _read(model: Engine | SampleMoE, sequences: Sequences, tokens_BC: Tensor) -> None:
    """One pass over the next tokens of every sequence."""
    output: Output = model(tokens_BC, sequences.caches)
    sequences.logits = output.logits[:, -1]
    if sequences.chosen is not None:
        sequences.chosen.append(output.expert_ids.flatten(1, 2))


def _read_dense(path: Path) -> SampleMoE:
    """The model without experts, from a file whose expert tensors stay unread."""
    config, _, file = open_model(path)
    with torch.device("meta"):
        model = SampleMoE(config)
    for layer in model.layers:
        layer.experts = nn.Identity()
    try:
        model.load_state_dict({name: file.get_tensor(name) for name in model.state_dict()}, assign=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: weights do not fit its own config ({reason}): train it again") from None
    return model
