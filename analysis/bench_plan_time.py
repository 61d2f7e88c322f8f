"""`make bench`: how long planning takes at the sizes people plan for.

Rows go to analysis/results/plan_time.csv. EPLB: 58 layers x 256 experts to 288 slots on 32 GPUs (DeepSeek-V3), where
the original takes about 650 ms. GRACE: 26 layers x 64 experts from half of the DeepSeek-V2-Lite trace.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.parts import problems
from grace_opt.configuration import build, read_configuration
from grace_opt.planners.eplb import rebalance
from grace_opt.planners.grace import Grace
from grace_opt.provenance import append_rows, provenance

RESULTS = Path(__file__).parent / "results" / "plan_time.csv"
REPEATS = 7


def main(arguments: list[str] | None = None) -> None:
    """Time both, print and append a row for each."""
    parser = argparse.ArgumentParser(prog="python -m analysis.bench_plan_time", description=__doc__)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder of traces (%(default)s)")
    trace = parser.parse_args(arguments).traces / "deepseek-v2-lite.npz"
    load_LE = np.random.default_rng(0).lognormal(size=(58, 256))
    rows = [
        row("eplb flat", "58 x 256 to 288 slots on 32 GPUs", lambda: rebalance(load_LE, 288, 1, 1, 32)),
        row("eplb hierarchical", "58 x 256 in 8 groups, 4 nodes", lambda: rebalance(load_LE, 288, 8, 4, 32)),
    ]
    if trace.is_file():
        config = read_configuration("plan", ["model=deepseek_v2_lite", f"trace.path={trace}"])
        built = {part: build(config[part]) for part in ("model", "topology", "trace", "split", "homes")}
        fit = problems(**built, slots_per_rank=64)["fit"]
        rows.append(row("grace", f"26 x 64 from {fit.trace.num_tokens} tokens, 2 x 2", lambda: Grace()(fit)))
    else:
        print(f"skipped: grace needs {trace}; give --traces FOLDER")
    for measured in rows:
        print("  ".join(f"{key}={value}" for key, value in measured.items()))
    append_rows(RESULTS, rows)


def row(planner: str, size: str, work: Callable[[], Any]) -> dict[str, Any]:
    """Minimum and median of several runs after one that compiles."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    seconds = {"min_s": round(min(times), 6), "median_s": round(float(np.median(times)), 6)}
    return {"planner": planner, "size": size, **seconds, "repeats": REPEATS, "seed": 0, **provenance()}


if __name__ == "__main__":
    main()
