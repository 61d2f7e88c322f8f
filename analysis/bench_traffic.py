"""`make bench`: time the exact counts at the size of DeepSeek-V3, beside the limit that memory bandwidth sets.

Rows go to analysis/results/traffic.csv. The limit is the time all cores need to read the mapped trace once.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.cores import num_cores
from grace_opt.homes import Balanced
from grace_opt.placement import EMPTY, Placement
from grace_opt.plan import Plan
from grace_opt.profile import expert_loads
from grace_opt.provenance import append_rows, provenance
from grace_opt.routing import Routing
from grace_opt.trace import Trace
from grace_opt.trace_file import read_trace, write_trace
from grace_opt.traffic import SCHEMES, traffic

NUM_EXPERTS, TOP_K, NUM_SLOTS, NUM_NODES, RANKS_PER_NODE, SEED = 256, 8, 288, 8, 8, 0
SIZES = ((1_000_000, 58), (500_000, 58), (1_000_000, 29), (250_000, 58))
RESULTS = Path(__file__).parent / "results" / "traffic.csv"


def main() -> None:
    """Count traffic for traces of several sizes, print and append a row for each."""
    rows = []
    for num_tokens, num_layers in SIZES:
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            path = Path(folder) / "bench.safetensors"
            write_random_trace(path, num_tokens, num_layers)
            rows.append(fresh.submit(measure, path).result())
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    append_rows(RESULTS, rows)


def write_random_trace(path: Path, num_tokens: int, num_layers: int) -> None:
    """A trace of skewed random choices in sequences of 500 tokens. For speed only, it has no meaning."""
    rng = np.random.default_rng(SEED)
    popularity = rng.gumbel(size=(20_000, NUM_EXPERTS)) + rng.normal(scale=0.7, size=NUM_EXPERTS)
    choices = np.argpartition(-popularity, TOP_K, axis=1)[:, :TOP_K].astype(np.uint8)
    ids_LTK = np.stack([choices[rng.integers(len(choices), size=num_tokens)] for _ in range(num_layers)])
    write_trace(
        path,
        expert_ids=ids_LTK,
        sequence=np.arange(num_tokens) // 500,
        domain=np.zeros(num_tokens, np.uint8),
        domain_names=("random",),
        model="bench",
        num_experts=NUM_EXPERTS,
        phase="prefill",
        source=f"random choices, seed {SEED}",
        synthetic=True,
    )


def replicated_plan(trace: Trace) -> Plan:
    """288 slots on 64 ranks: the 32 most loaded experts have a replica; copies are dealt in random order."""
    rng = np.random.default_rng(SEED)
    num_ranks = NUM_NODES * RANKS_PER_NODE
    slots = np.full((trace.num_layers, num_ranks, -(-NUM_SLOTS // num_ranks)), EMPTY)
    for layer, load_E in enumerate(expert_loads(trace)):
        copies = np.concatenate([np.arange(NUM_EXPERTS), np.argsort(-load_E)[: NUM_SLOTS - NUM_EXPERTS]])
        for position, expert in enumerate(rng.permutation(copies)):
            slots[layer, position % num_ranks, position // num_ranks] = expert
    placement = Placement(slots, NUM_EXPERTS)
    return Plan("bench", tuple(range(trace.num_layers)), (RANKS_PER_NODE,) * NUM_NODES, placement, Routing("tar"))


def measure(path: Path) -> dict[str, Any]:
    """Best of five counts of one mapped trace, all schemes, beside the best of five plain reads of its bytes.

    Run it in a fresh process: memory that was freed before and is used again would not show as growth.
    """
    trace = Balanced()(read_trace(path), NUM_NODES * RANKS_PER_NODE)
    plan = replicated_plan(trace)

    def count() -> None:
        counts = traffic(trace, plan)
        for scheme in SCHEMES:
            counts.dispatch(scheme)
            counts.combine(scheme)

    traffic(Balanced()(trace.select(np.array([0])), plan.num_ranks), plan)  # compile
    with _peak_private_bytes() as peak:
        seconds = _best_seconds(count)
    limit = _best_seconds(lambda: _read_all(trace.expert_ids))
    return {
        "benchmark": "traffic",
        "tokens": trace.expert_ids.shape[1],
        "layers": trace.num_layers,
        "top_k": TOP_K,
        "experts": NUM_EXPERTS,
        "slots": NUM_SLOTS,
        "ranks": NUM_NODES * RANKS_PER_NODE,
        "routing": "tar",
        "schemes": "all three",
        "seconds": round(seconds, 4),
        "limit_s": round(limit, 4),
        "fraction_of_limit": round(limit / seconds, 4),
        "ns_per_choice_and_core": round(1e9 * seconds * num_cores() / trace.expert_ids.size, 3),
        "extra_mb": round(peak[0] / 1e6, 1) if peak else None,
        "seed": SEED,
        **provenance(),
    }


def _best_seconds(work: Callable[[], None], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _read_all(ids_LTK: NDArray[Any]) -> None:
    with ThreadPoolExecutor(num_cores()) as pool:
        list(pool.map(lambda ids: np.asarray(ids).ravel().view(np.uint64).max(), ids_LTK))


@contextmanager
def _peak_private_bytes() -> Iterator[list[int]]:
    """Largest growth of private memory (mapped files not counted) inside the block, sampled every 2 ms."""

    if not Path("/proc/self/status").exists():  # Linux only
        yield []
        return

    def private() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    before, peak, done = private(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], private() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    main()
