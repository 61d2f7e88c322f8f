"""A run of a model over sequences, batch by batch, and the traces of those that were done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grace_opt.model import MoEModel
from grace_opt.trace import check_expert_ids
from grace_opt.trace_file import write_token_major
from runtime.recording.architectures import Architecture, architecture_of
from runtime.recording.spool import Spool
from runtime.recording.text import Sequences


@dataclass(frozen=True, eq=False)
class Traces:
    """What a run left.

    Attributes:
        prefill, decode: choices of each phase; decode is None if nothing was to be decoded.
        done: sequences that were read to their end, in order.
        ended_by: what ended the run early: KeyboardInterrupt, or what went wrong; None if nothing did.
    """

    prefill: Spool
    decode: Spool | None
    done: tuple[int, ...]
    ended_by: BaseException | None

    def write(self, path: Path, phase: str, model: MoEModel, sequences: Sequences, source: str) -> str:
        """Write one phase's trace and say what it holds; "" if it holds nothing, and nothing is written then."""
        spool = self.prefill if phase == "prefill" else self.decode
        kept = [sequence for sequence in self.done if spool is not None and spool.lengths[sequence]]
        if spool is None or not kept:
            return ""
        lengths = spool.lengths[kept]
        write_token_major(
            path, spool.pieces(kept), lengths.tolist(), [sequences.domains[sequence] for sequence in kept],
            num_layers=model.num_layers, top_k=model.top_k, domain_names=sequences.domain_names, model=model.name,
            num_experts=model.num_experts, phase=phase, source=source,
        )  # fmt: skip
        return (
            f"a trace of {model.name}, {lengths.sum()} tokens in {len(kept)} sequences, {model.num_layers} MoE layers "
            f"({model.layer_ids[0]} to {model.layer_ids[-1]}), {model.num_experts} experts, top-{model.top_k}, {phase}"
        )


@dataclass(frozen=True, eq=False)
class Recording:
    """A loaded model, ready to be recorded.

    Attributes:
        model: its sizes.
        loaded: causal language model of transformers.
        blocks: absolute layer id to MoE block.
    """

    model: MoEModel
    loaded: Any
    blocks: dict[int, Any]
    architecture: Architecture

    @classmethod
    def of(cls, loaded: Any, config: Any, name: str) -> "Recording":
        """Find the MoE layers of a model and describe it.

        Args:
            config: as the checkpoint has it, before anything was loaded.

        Raises:
            ValueError: it has no MoE layers, or they do not follow one another.
        """
        from runtime.recording.description import describe
        from runtime.recording.routers import moe_blocks

        try:
            blocks = moe_blocks(loaded)
        except ValueError as error:
            raise ValueError(f"model {name}: {error}") from None
        if config.dtype is None:
            config.dtype = loaded.dtype
        dense = sum(weight.numel() for key, weight in loaded.named_parameters() if ".experts." not in key)
        return cls(describe(config, name, list(blocks), dense), loaded, blocks, architecture_of(config))

    def run(
        self,
        sequences: Sequences,
        batch: int,
        decode_tokens: int,
        temperature: float,
        seed: int,
        folder: Path,
        watch: Callable[[int], None] = lambda done: None,
    ) -> Traces:
        """Read all sequences; whatever ends it early (Ctrl-C, lack of memory), what is done until then is kept.

        Args:
            folder: for temporary files as large as the traces.
            watch: called with the number of sequences that were done.
        """
        import torch

        from runtime.recording.reader import Reader
        from runtime.recording.routers import Routers

        size = (self.model.num_layers, self.model.top_k, np.uint8 if self.model.num_experts <= 256 else np.uint16)
        prefill = Spool(folder, [len(tokens) for tokens in sequences.tokens], *size)
        decode = Spool(folder, [decode_tokens] * len(sequences.tokens), *size) if decode_tokens else None
        done: list[int] = []
        ended_by: BaseException | None = None
        try:
            with Routers(self.blocks, self.architecture, self.model.num_experts, self.model.top_k) as routers:
                read = Reader(self.loaded, routers, decode_tokens, temperature, seed)
                for members in batches([len(tokens) for tokens in sequences.tokens], batch):
                    choices = read([sequences.tokens[sequence] for sequence in members])
                    for sequence, ids_TLK, ids_NLK in zip(members, choices.prefill, choices.decode, strict=True):
                        for spool, ids in ((prefill, ids_TLK), (decode, ids_NLK)):
                            if spool is not None:
                                check_expert_ids(ids.transpose(1, 0, 2), self.model.num_experts)
                                spool.put(sequence, ids)
                    done += members
                    watch(len(members))
        except KeyboardInterrupt as interrupt:
            ended_by = interrupt
        except torch.OutOfMemoryError:
            way_out = f"batch={batch // 2}" if batch > 1 else "fewer tokens_per_sequence"
            ended_by = MemoryError(f"no memory for {batch} sequences at once: give {way_out}")
        except (ValueError, OSError) as error:
            ended_by = error
        except Exception as error:  # in the model's own code, on this device
            text = " ".join(str(error).split())
            ended_by = RuntimeError(f"the model cannot run here ({type(error).__name__}: {text})")
        return Traces(prefill, decode, tuple(sorted(done)), ended_by)


def batches(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Sequences of equal lengths together, at most `batch` of them; the longest first, so that memory ends early."""
    order = sorted(range(len(lengths)), key=lambda sequence: -lengths[sequence])
    found: list[list[int]] = []
    for sequence in order:
        if not found or len(found[-1]) == batch or lengths[found[-1][0]] != lengths[sequence]:
            found.append([])
        found[-1].append(sequence)
    return found
