"""`make validate`: predicted against measured on hosts of this machine that a slow network joins.

For every cluster of CLUSTERS it builds the hosts, calibrates them, replays the DeepSeek-V2-Lite trace (the embedded
sample's where that is absent) through layers of reduced width, and runs the sample model end to end; all planners and
schemes, in prefill and decode. Rows of all runs go to outputs/validate/result.json and analysis/results/validation.csv.
Needs root, for the hosts are network namespaces.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.agreement import summarize
from analysis.report import print_agreement
from analysis.results import Row, write_result
from grace_opt.provenance import append_rows, provenance

RESULTS = Path(__file__).parent / "results" / "validation.csv"
REPLAYED = {"model.hidden_size": 512, "model.ffn_size": 128}
"""Width of the layers that replay a trace, reduced so that two cores keep up with the network."""
FLOAT32 = {"model.bytes_per_value": 4, "model.bytes_per_weight": 4}


@dataclass(frozen=True)
class Cluster:
    """Hosts to build: how many, ranks on each, and the rate of their network cards each way."""

    hosts: int
    ranks: int
    rate: str

    @property
    def name(self) -> str:
        return f"{self.hosts}x{self.ranks}_{self.rate}"


CLUSTERS = (Cluster(2, 2, "200mbit"), Cluster(4, 1, "200mbit"))


def main(arguments: list[str] | None = None) -> int:
    """Run everything; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.bench_validation", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/validate"), help="folder to write to (%(default)s)"
    )
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder of traces (%(default)s)")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("outputs/sample/model.safetensors"), help="(%(default)s)"
    )
    flags = parser.parse_args(arguments)
    if sys.platform != "linux" or os.geteuid() != 0:
        print("skipped: validation on hosts of one machine needs Linux and root; on a cluster use -m runtime validate")
        return 0
    rows: list[Row] = []
    for cluster in CLUSTERS:
        for part in (_replay(flags.traces), _sample(flags.checkpoint)):
            rows += _validate(cluster, part, flags.output)
            _write(flags.output, rows, complete=False)
    _write(flags.output, rows, complete=True)
    append_rows(RESULTS, [{**row, **provenance()} for row in _flat(rows)])
    print_agreement(summarize(rows))
    print(f"\nwrote {flags.output}/result.json ({len(rows)} rows) and {RESULTS.name}")
    return 0


@dataclass(frozen=True)
class Part:
    """One model on a cluster: what calibration and all runs of it are given, and what each run adds."""

    name: str
    model: dict[str, Any]
    runs: tuple[dict[str, Any], ...]


def _replay(traces: Path) -> Part:
    """Layers of reduced width that replay a trace."""
    path = traces / "deepseek-v2-lite.npz"
    schemes = "[pairs,flat,hierarchical,hierarchical_padded]"
    run = {"tokens_per_rank": "[1024,256]", "layers": 2, "schemes": schemes}
    if path.is_file():
        return Part("replay", {"model": "deepseek_v2_lite", **REPLAYED, **FLOAT32}, ({**run, "trace.path": path},))
    print(f"skipped: no DeepSeek-V2-Lite trace in {traces}; the embedded sample's trace is replayed in its place")
    return Part("replay", {"model": "sample", **REPLAYED, **FLOAT32}, (run,))


def _sample(checkpoint: Path) -> Part:
    """The sample model as it is, in prefill and decode."""
    run = {"measured": "sample", "measured.checkpoint": checkpoint, "layers": "null", "measured.repetitions": 2}
    prefill = {**run, "measured.phase": "prefill", "tokens_per_rank": "[1024]"}
    decode = {**run, "measured.phase": "decode", "tokens_per_rank": "[256]", "measured.length": 4, "measured.steps": 2}
    return Part("sample", {"model": "sample", **FLOAT32}, (prefill, decode))


def _validate(cluster: Cluster, part: Part, output: Path) -> list[Row]:
    """Rows of one model on one cluster."""
    folder = output / cluster.name / part.name
    name = {"name": cluster.name, "output": folder / "calibration"}
    _launch(cluster, "calibrate", {**part.model, **name})
    rows: list[Row] = []
    for number, run in enumerate(part.runs):
        place = {"topology.path": folder / "calibration" / "topology.yaml", "output": folder / str(number)}
        _launch(cluster, "validate", {**part.model, **run, **place})
        rows += json.loads((folder / str(number) / "result.json").read_text())["rows"]
    return rows


def _launch(cluster: Cluster, command: str, options: dict[str, Any]) -> None:
    """Run a command of the runtime on the hosts of a cluster.

    Raises:
        SystemExit: it failed; it has said why.
    """
    hosts = ["--hosts", str(cluster.hosts), "--ranks-per-host", str(cluster.ranks), "--rate", cluster.rate]
    chosen = [f"{key}={value}" for key, value in options.items()]
    print(f"\n{cluster.name}: {command} {' '.join(chosen)}", flush=True)
    arguments = [sys.executable, "-m", "runtime.hosts", *hosts, "--time-limit", "1800", "--", "-m", "runtime", command]
    ended = subprocess.run([*arguments, *chosen], check=False)
    if ended.returncode:
        raise SystemExit(ended.returncode)


def _write(output: Path, rows: list[Row], complete: bool) -> None:
    write_result(output, "validate", {"summary": summarize(rows)}, rows, complete)


def _flat(rows: list[Row]) -> list[Row]:
    """The rows without lists, all with the same fields."""
    fields = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list))
    return [{field: row.get(field, "") for field in fields} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
