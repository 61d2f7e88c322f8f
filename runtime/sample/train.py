"""Train the sample model: AdamW, linear warm-up, cosine decay; the same seed gives the same weights on one machine."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from runtime.sample.model import Output, SampleConfig, SampleMoE
from runtime.sample.text import Corpus


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn; a step sees `batch` windows of `length` tokens."""

    steps: int = 1700
    batch: int = 8
    length: int = 256
    learning_rate: float = 5e-3
    warmup: int = 50
    weight_decay: float = 0.1
    seed: int = 0


def train(corpus: Corpus, model_config: SampleConfig, config: TrainConfig) -> SampleMoE:
    """Train on random windows of `corpus.train`, reporting progress on standard output.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    tokens, started = torch.from_numpy(corpus.train), time.monotonic()
    with _deterministic(config.seed):
        model = SampleMoE(model_config)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, config))
        for step in range(config.steps):
            output, loss = _predict(model, draw_windows(tokens, config.batch, config.length))
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}: lower learning_rate")
            torch.autograd.backward(loss + output.router_loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            _report(step + 1, config.steps, loss.item(), time.monotonic() - started)
    return model.eval()


def rate_at(step: int, config: TrainConfig) -> float:
    """Factor of the learning rate: up linearly during warm-up, then down along a cosine to a twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.525 + 0.475 * math.cos(math.pi * done)


def draw_windows(tokens: Tensor, num: int, length: int) -> Tensor:
    """Windows [num, length + 1] at random places of tokens [T]: inputs, and targets one to the right."""
    starts = torch.randint(len(tokens) - length, (num, 1))
    return tokens[starts + torch.arange(length + 1)]


@torch.no_grad()
def loss_per_byte(model: SampleMoE, windows: Tensor, token_bytes: list[bytes]) -> float:
    """Mean cross entropy of windows [Q, length + 1], in nats per byte of the text predicted."""
    num_bytes = torch.tensor([len(text) for text in token_bytes])
    total = sum(_predict(model, part)[1].item() * part[:, 1:].numel() for part in torch.split(windows, 16))
    return float(total / num_bytes[windows[:, 1:]].sum().item())


def _predict(model: SampleMoE, windows: Tensor) -> tuple[Output, Tensor]:
    """Output for all but the last position, and its mean cross entropy in nats per token."""
    output: Output = model(windows[:, :-1])
    return output, functional.cross_entropy(output.logits.flatten(0, 1), windows[:, 1:].flatten())


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and forbid its nondeterministic kernels; put both back afterwards."""
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # a guard for debugging that costs 15 % of a step
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            memory.fill_uninitialized_memory = before[1]


def _report(step: int, steps: int, loss: float, seconds: float) -> None:
    """One line that is rewritten on a terminal, ten lines elsewhere."""
    line = f"step {step}/{steps}  loss {loss:.3f} nats per token  {seconds:.0f} s"
    if sys.stdout.isatty():
        print(f"\r{line}", end="\n" if step == steps else "", flush=True)
    elif step == steps or step % math.ceil(steps / 10) == 0:
        print(line, flush=True)
