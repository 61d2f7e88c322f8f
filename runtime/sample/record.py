"""Record which experts the sample model chooses: one forward pass, every position of the recorded sequences."""

import platform
from pathlib import Path

import numpy as np
import torch

from grace_opt.trace_file import write_trace
from runtime.sample.model import SampleMoE
from runtime.sample.text import Corpus
from runtime.sample.train import TrainConfig


@torch.no_grad()
def record(model: SampleMoE, sequences: np.ndarray) -> np.ndarray:
    """Expert ids [L, T, K] uint8, best first, of sequences [Q, length], one after the other (T = Q * length)."""
    expert_ids = [model(part).expert_ids.flatten(1, 2) for part in torch.split(torch.from_numpy(sequences), 16)]
    return torch.cat(expert_ids, dim=1).to(torch.uint8).numpy()


def write_recording(path: Path, model: SampleMoE, corpus: Corpus, config: TrainConfig) -> None:
    """Record the sequences of `corpus` and write them as a trace file."""
    num_sequences, length = corpus.recorded.shape
    write_trace(
        path,
        expert_ids=record(model, corpus.recorded),
        sequence=np.repeat(np.arange(num_sequences, dtype=np.uint32), length),
        domain=np.repeat(corpus.domain, length),
        domain_names=corpus.domain_names,
        model="sample-moe",
        num_experts=model.config.num_experts,
        phase="prefill",
        source=(
            f"sample model ({config.steps} steps, seed {config.seed}) reading {num_sequences} files of Python "
            f"{platform.python_version()}'s library that it was not trained on"
        ),
    )
