"""`python -m runtime.sample`: train the sample model, then record the trace that grace-opt carries in conf/samples."""

import argparse
import os
import time
from pathlib import Path

import torch

from grace_opt.trace_file import read_trace
from grace_opt.trace_statistics import fit_statistics, groups_of_independent_draws
from runtime.sample.checkpoint import save_model
from runtime.sample.model import SampleConfig
from runtime.sample.record import write_recording
from runtime.sample.text import load_corpus
from runtime.sample.train import TrainConfig, draw_windows, loss_per_byte, train


def main(arguments: list[str] | None = None) -> None:
    """Train, record, and say how good and how placeable the result is."""
    config, output = _parse(arguments)
    started, cpu_started = time.monotonic(), time.process_time()
    corpus = load_corpus(length=config.length, seed=config.seed)
    print(f"{len(corpus.train):,} tokens of {len(corpus.train_files)} modules to train on")
    print(f"{corpus.recorded.size:,} tokens of {len(corpus.recorded_files)} other modules to record")
    model = train(corpus, SampleConfig(corpus.tokenizer.num_tokens), config)
    save_model(output / "model.safetensors", model, corpus.tokenizer)
    write_recording(output / "sample.safetensors", model, corpus, config)

    torch.manual_seed(config.seed)
    seen = draw_windows(torch.from_numpy(corpus.train), len(corpus.recorded), config.length)
    for name, windows in (("training text", seen), ("recorded modules", torch.from_numpy(corpus.recorded))):
        print(f"loss on {name}: {loss_per_byte(model, windows, corpus.tokenizer.token_bytes):.3f} nats per byte")
    trace = read_trace(output / "sample.safetensors")
    figures, independent = fit_statistics(trace).figures, groups_of_independent_draws(trace)
    print("distinct groups of 8 that a token visits, on held-out sequences, mean over layers:")
    print(f"index order {figures['groups_index']:.2f}, fitted to affinity {figures['groups_fitted']:.2f}", end=", ")
    print(f"fitted, but experts drawn independently {independent:.2f}")
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    print(f"wrote {output}/model.safetensors and sample.safetensors in {seconds:.0f} s ({cpu_seconds:.0f} s of CPU)")


def _parse(arguments: list[str] | None) -> tuple[TrainConfig, Path]:
    parser = argparse.ArgumentParser(prog="python -m runtime.sample", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/sample"), help="folder to write to (%(default)s)")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps, help="training steps (%(default)s)")
    flags = parser.parse_args(arguments)
    if flags.steps < 1:
        parser.error(f"--steps must be at least 1, got {flags.steps}")
    try:
        flags.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output {flags.output} cannot be made a folder: {error.strerror}")
    if not os.access(flags.output, os.W_OK):
        parser.error(f"--output {flags.output} is not writable")
    return TrainConfig(steps=flags.steps), flags.output


if __name__ == "__main__":
    main()
