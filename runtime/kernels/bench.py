"""`python -m runtime.kernels.bench`: the kernels on a GPU beside their limits. Rows go to analysis/results/kernels.csv.

permute, unpermute   bytes moved, (N + M) * D values, at the bandwidth of a large copy on this very card
choose, cover        TARGET_CHOOSE_S; what the GPU does, replayed as a CUDA graph, and launched one by one
grouped_gemm         one product of as many operations, or reading everything once if that takes longer; or torch's
                     grouped_mm where that is faster still
"""

# mypy: disable-error-code="import-untyped, import-not-found"

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grace_opt.placement import Placement
from grace_opt.provenance import append_rows, provenance
from runtime.kernels.choice import choose
from runtime.kernels.counting import positions
from runtime.kernels.cover import Copies, cover
from runtime.kernels.permute import permute
from runtime.kernels.unpermute import unpermute

SEED, DTYPE, NUM_EXPERTS, NUM_PHYSICAL, TOP_K = 0, torch.bfloat16, 256, 288, 8
NODES = (8, 8, 8, 8)
TARGET_CHOOSE_S = 30e-6
RESULTS = Path(__file__).parents[2] / "analysis" / "results" / "kernels.csv"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        copy_bytes: of the copy that shows the bandwidth.
        moves: (tokens, hidden) of permute and unpermute.
        choices: tokens whose copies are chosen.
        products: (rows, groups, hidden, FFN size) of grouped products; 64 rows are those of decoding.
    """

    copy_bytes: int = 2**31
    moves: tuple[tuple[int, int], ...] = tuple(product((4096, 16384, 65536), (2048, 7168)))
    choices: tuple[int, ...] = (64, 16384, 65536)
    products: tuple[tuple[int, int, int, int], ...] = tuple(
        (rows, groups, hidden, ffn)
        for rows, groups, (hidden, ffn) in product((64, 4096, 32768, 131072), (8, 64), ((2048, 1408), (7168, 2048)))
    )


def main() -> None:
    """Measure, print and append a row for each; without a GPU there is nothing to measure."""
    if not torch.cuda.is_available():
        print("skipped: measuring the kernels needs a GPU")
        return
    rows = []
    for row in measure(Sizes(), "cuda"):
        print("  ".join(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)
        rows.append(row)
    gpu = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": version("triton"), "seed": SEED}
    append_rows(RESULTS, [{**row, **gpu, **provenance()} for row in rows])


def measure(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    """All rows. On the CPU (for tests, Triton in its interpreter) the figures mean nothing."""
    copy_s = seconds_of_copy(sizes.copy_bytes, device)
    yield row_of("copy", "torch", copy_s, copy_s)
    bandwidth = 2 * sizes.copy_bytes / copy_s
    for tokens, hidden in sizes.moves:
        yield from measure_moves(tokens, hidden, bandwidth, device)
    for tokens in sizes.choices:
        yield from measure_choose(tokens, device)
        yield from measure_cover(tokens, device)
    for rows, groups, hidden, ffn in sizes.products:
        yield from measure_product(rows, groups, hidden, ffn, bandwidth, device)


def seconds_of_copy(size_bytes: int, device: str) -> float:
    """Reading and writing this many bytes."""
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source), device)


def measure_moves(tokens: int, hidden: int, bandwidth: float, device: str) -> Iterator[dict[str, Any]]:
    """Permute and unpermute of tokens that each go to TOP_K experts."""
    random = torch.Generator(device).manual_seed(SEED)
    position, _ = positions(random_experts(tokens, random), NUM_EXPERTS)
    x = torch.randn(tokens, hidden, device=device, generator=random).to(DTYPE)
    weights = torch.rand(tokens, TOP_K, device=device, generator=random)
    spread = permute(x, position, tokens * TOP_K)
    limit = (x.nbytes + spread.nbytes) / bandwidth
    forth = seconds(lambda: permute(x, position, tokens * TOP_K), device)
    back = seconds(lambda: unpermute(spread, position, weights), device)
    for kernel, taken in (("permute", forth), ("unpermute", back)):
        yield row_of(kernel, "triton", taken, limit, tokens=tokens, hidden=hidden)


def measure_choose(tokens: int, device: str) -> Iterator[dict[str, Any]]:
    """Choice, counts and offsets together, for experts that walk schedules of 64 entries."""
    random = torch.Generator(device).manual_seed(SEED)
    ids = random_experts(tokens, random)
    start = 64 * torch.arange(NUM_EXPERTS, device=device)
    length = torch.full_like(start, 64)
    schedule = torch.randint(NUM_PHYSICAL, (64 * NUM_EXPERTS,), device=device, generator=random)

    def work() -> object:
        return choose(ids, 3, start, length, schedule, NUM_PHYSICAL)

    yield from rows_of_choice("choose", work, tokens, device)


def measure_cover(tokens: int, device: str) -> Iterator[dict[str, Any]]:
    """The same under the policy `cover`, on NODES nodes, with experts and replicas dealt onto ranks at random."""
    random = torch.Generator(device).manual_seed(SEED)
    ids = random_experts(tokens, random)
    rng = np.random.default_rng(SEED)
    experts = np.concatenate((np.arange(NUM_EXPERTS), rng.integers(NUM_EXPERTS, size=NUM_PHYSICAL - NUM_EXPERTS)))
    slots_LRS = rng.permutation(experts).reshape(1, sum(NODES), -1)
    copies = Copies.of_placement(Placement(slots_LRS, NUM_EXPERTS), NODES, 0, 3, device)
    yield from rows_of_choice("cover", lambda: cover(ids, copies), tokens, device)


def rows_of_choice(kernel: str, work: Callable[[], object], tokens: int, device: str) -> Iterator[dict[str, Any]]:
    """What the GPU does alone, and with its launches."""
    for form, clock in (("graph", seconds_in_graph), ("eager", seconds)):
        yield row_of(kernel, form, clock(work, device), TARGET_CHOOSE_S, tokens=tokens, groups=NUM_EXPERTS)


def measure_product(
    rows: int, groups: int, hidden: int, ffn: int, bandwidth: float, device: str
) -> Iterator[dict[str, Any]]:
    """Our grouped product and torch's, for groups whose sizes differ as loads of experts do."""
    from runtime.kernels.grouped_gemm_triton import grouped_gemm_triton

    random = torch.Generator(device).manual_seed(SEED)
    share = torch.randn(groups, device=device, generator=random).exp()
    group = torch.multinomial(share, rows, replacement=True, generator=random)
    ends = torch.bincount(group, minlength=groups).cumsum(0)
    x = torch.randn(rows, hidden, device=device, generator=random).to(DTYPE)
    weight = torch.randn(groups, hidden, ffn, device=device, generator=random).to(DTYPE)
    served = int((torch.bincount(group, minlength=groups) > 0).sum())
    bytes_moved = x.nbytes + weight[0].nbytes * served + 2 * rows * ffn
    by_form: dict[str, Callable[[], object]] = {
        "triton": lambda: grouped_gemm_triton(x, weight, ends),
        "grouped_mm": lambda: functional.grouped_mm(x, weight, offs=ends.int()),
        "one product": lambda: x @ weight[0],
    }
    taken = {form: seconds(work, device) for form, work in by_form.items()}
    limit = min(taken["grouped_mm"], max(taken["one product"], bytes_moved / bandwidth))
    for form in ("triton", "grouped_mm"):
        yield row_of("grouped_gemm", form, taken[form], limit, tokens=rows, hidden=hidden, ffn=ffn, groups=groups)


def random_experts(tokens: int, random: torch.Generator) -> Tensor:
    """[tokens, TOP_K] distinct experts, some far more often than others."""
    favour = torch.randn(NUM_EXPERTS, device=random.device, generator=random)
    noise = torch.rand(tokens, NUM_EXPERTS, device=random.device, generator=random)
    return (favour - (-noise.log()).log()).topk(TOP_K, dim=1).indices


def row_of(kernel: str, form: str, taken_s: float, limit_s: float, **shape: int) -> dict[str, Any]:
    """One measurement; shapes that do not apply stay empty."""
    sizes = {name: shape.get(name, "") for name in ("tokens", "hidden", "ffn", "groups")}
    figures = {
        "seconds": f"{taken_s:.4g}",
        "limit_s": f"{limit_s:.4g}",
        "fraction_of_limit": round(limit_s / taken_s, 3),
    }
    return {"kernel": kernel, "form": form, "dtype": str(DTYPE).removeprefix("torch."), **sizes, **figures}


def seconds(work: Callable[[], object], device: str) -> float:
    """Median time of a call from a cold cache."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(work, return_mode="median")) / 1e3
    started = perf_counter()
    work()
    return perf_counter() - started


def seconds_in_graph(work: Callable[[], object], device: str) -> float:
    """Time of a call when the GPU runs a recorded graph of many, so that launching costs nothing."""
    if device == "cuda":
        from triton.testing import do_bench_cudagraph

        return float(do_bench_cudagraph(work, return_mode="median")) / 1e3
    return seconds(work, device)


if __name__ == "__main__":
    main()
