"""`grace-opt accuracy`: how far predictions are from measurements others published, protocol by protocol."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Printed

from analysis import placement_effects
from analysis.report import console
from analysis.results import Row, require_writable, write_result
from grace_opt.configuration import CONF_DIR, groups
from grace_opt.gpu import GPU
from simulator.calibration import communication, experts
from simulator.calibration.comparison import PROTOCOLS, Comparison
from simulator.calibration.expert_tables import is_expert_table
from simulator.calibration.tables import Table, has_package, read_table
from simulator.transport import Transport

AIMS: tuple[tuple[str, str, str, float, str], ...] = (
    ("low latency.*7168", "in_sample", "mean_pct", 3, "0.9-2.9"),
    ("low latency.*7168", "leave_one_node_count_out", "mean_pct", 5, "1.2-15.2"),
    ("normal.* 4 nodes", "in_sample", "mean_pct", 5, "3.8-7.8"),
    ("normal.* 2 nodes", "in_sample", "mean_pct", 8, "7.6-10.6"),
    ("normal.* 8 nodes", "in_sample", "mean_pct", 8, "4.6-15.1"),
    ("GB200.*NVLink|NVLink.*GB200", "leave_one_ep_size_out", "mean_pct", 6, "5.7-12.3"),
    ("^grouped GEMM", "in_sample", "mean_pct", 2, "1.1-3.2"),
    ("^grouped GEMM", "uniform_to_skewed", "median_pct", 5, "4.7-5.9"),
    ("^grouped GEMM", "uniform_to_skewed", "mean_pct", 8, "6.8-12.4"),
)
"""Data sets (a pattern of their names), protocol, statistic, our aim, and what a simple model was seen to reach."""


def accuracy(output: str, table: str | None = None, preset: str | None = None, fit: str | None = None) -> list[Row]:
    """Compare predictions with measurements; print a line per data set and protocol and write result.json.

    Args:
        table: a table of measurements to test on; None for all that are known and present.
        preset: a choice of conf/gpu or conf/transport whose constants are tested as they are; only with `table`.
        fit: a protocol (in_sample, leave_one_node_count_out, ...), or another table that constants are fitted to; only
            with `table`. Without preset and fit: every protocol that the table has rows for.

    Raises:
        ValueError: bad input, or rows that are fitted to and tested on at once.
    """
    folder = require_writable(output)
    skipped: list[str] = []
    if table is not None:
        comparisons = iter(of_table(read_table(table), preset, fit))
    elif preset is not None or fit is not None:
        raise ValueError(f"{'fit' if preset is None else 'preset'} needs a table to test on: add table=FILE")
    else:
        comparisons = known(skipped)
    about: dict[str, Any] = {"table": table, "preset": preset, "fit": fit}
    rows: list[Row] = []
    progress = Console(stderr=True)
    with progress.status("comparing") as status:
        for comparison in comparisons:
            rows.append(summarize(comparison))
            status.update(f"compared {comparison.data}, {comparison.protocol}")
            write_result(folder, "accuracy", about, rows, complete=False)
    effects = placement_effects.effects(skipped) if table is None else []
    if not rows and not effects:
        raise ValueError(f"no measurements to compare with: {'; '.join(skipped)}")
    write_result(folder, "accuracy", {**about, "skipped": skipped, "placement_effects": effects}, rows)
    print_accuracy(rows, skipped)
    placement_effects.print_effects(effects)
    print(f"\nwrote {folder}/result.json")
    return rows


def known(skipped: list[str]) -> Iterator[Comparison]:
    """All data sets that are present, under all their protocols; one line in `skipped` for each that is not."""
    if not has_package():
        skipped.append("measured tables: install the optional package with pip install 'grace-opt[measured]'")
    yield from communication.comparisons(skipped)
    yield from experts.comparisons(skipped)


def of_table(table: Table, preset: str | None, fit: str | None) -> Sequence[Comparison]:
    """The comparisons of one table a user gives; what it measures is read off its columns."""
    if preset is not None and fit is not None:
        raise ValueError(f"give either preset={preset} (its constants as they are) or fit={fit}, not both")
    protocol = fit if fit in PROTOCOLS else None
    other = read_table(fit) if fit is not None and protocol is None else None
    constants = None if preset is None else _preset(preset)
    if communication.is_communication_table(table):
        if isinstance(constants, GPU):
            raise ValueError(f"{table.source} measures communication, but preset={preset} is a GPU: give a transport")
        return communication.compare_table(table, other, constants, protocol)
    if is_expert_table(table):
        if isinstance(constants, Transport):
            raise ValueError(f"{table.source} measures experts, but preset={preset} is a transport: give a GPU")
        return experts.compare_table(table, other, constants, protocol)
    raise ValueError(f"{table.source} is no table of a known form; it has the columns {', '.join(table.columns)}")


def _preset(name: str) -> GPU | Transport:
    for group in ("gpu", "transport"):
        if name in groups()[group]:
            built: GPU | Transport = instantiate(OmegaConf.load(CONF_DIR / group / f"{name}.yaml"), _convert_="all")
            return built
    raise ValueError(f"preset={name} is none of {', '.join([*groups()['gpu'], *groups()['transport']])}")


def summarize(comparison: Comparison) -> Row:
    """Errors of one comparison in percent, and what was aimed at."""
    error = comparison.error * 100
    size = np.abs(error)
    row: Row = {
        "data": comparison.data,
        "protocol": comparison.protocol,
        "num_rows": len(error),
        "median_pct": float(np.median(size)),
        "mean_pct": float(size.mean()),
        "p90_pct": float(np.quantile(size, 0.9)),
        "worst_pct": float(size.max()),
        "bias_pct": float(error.mean()),
        "note": comparison.note,
    }
    aims = [aim for aim in AIMS if aim[1] == row["protocol"] and re.search(aim[0], row["data"])]
    row["simple_model_pct"] = aims[0][4] if aims else ""
    row["aim"] = ", ".join(f"{statistic.removesuffix('_pct')} {limit:g}" for _, _, statistic, limit, _ in aims)
    row["reached"] = all(row[statistic] <= limit for _, _, statistic, limit, _ in aims) if aims else None
    return row


def print_accuracy(rows: Sequence[Row], skipped: Sequence[str]) -> None:
    """Print one line a data set and protocol."""
    out = console()
    out.print("errors of predicted against measured times, in percent\n", highlight=False)
    table = Printed(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("data")
    table.add_column("protocol")
    for title in ("rows", "median", "mean", "90th", "worst", "bias", "a simple\nmodel", "aim"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row[f'{name}_pct']:.1f}" for name in ("median", "mean", "p90", "worst")]
        missed = "" if row["reached"] is not False else " (missed)"
        table.add_row(
            escape(row["data"]),
            row["protocol"],
            str(row["num_rows"]),
            *cells,
            f"{row['bias_pct']:+.1f}",
            row["simple_model_pct"],
            f"{row['aim']}{missed}",
        )
    out.print(table)
    for line in skipped:
        out.print(f"skipped: {line}", style="yellow", highlight=False, markup=False)
