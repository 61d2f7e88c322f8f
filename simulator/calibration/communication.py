"""Communication: how far predictions of transports are from what others measured.

Predictions run through `simulator.network`, as those of plans do. Constants are fitted by `kernel_fit`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.calibration.comparison import Comparison
from simulator.calibration.exchange_tables import FORMS, exchanges_of, form_of
from simulator.calibration.exchanges import Exchange, measured, predicted
from simulator.calibration.kernel_fit import fit_kernel
from simulator.calibration.kernel_shapes import shapes_for
from simulator.calibration.tables import MissingDataError, Table, packaged, published_folder, read_table
from simulator.calibration.transport_presets import (
    ENOUGH_SMS,
    NCCL_TABLES,
    NODES_TABLE,
    NORMAL_NODES,
    NVLINK_SYSTEMS,
    NVLINK_TABLE,
    ONE_NODE_KINDS,
    SYSTEMS,
    low_latency_kernel,
    nccl_rows,
    one_node,
    presets,
    rail_line,
    rail_rows,
)
from simulator.transport import Kernel, Transport

__all__ = ["compare_table", "comparisons", "is_communication_table", "presets"]

REFERENCE_BYTES_PER_S = 450e9
"""Links that all GPUs are scaled to before one is predicted from the others."""


def is_communication_table(table: Table) -> bool:
    """Whether the table's columns are those of a known form."""
    return form_of(table) is not None


def compare_table(
    table: Table, fit: Table | None, transport: Transport | None, protocol: str | None
) -> list[Comparison]:
    """Predictions beside a table's measurements, kernel by kernel.

    Args:
        fit: another table of the same form, to which constants are fitted.
        transport: a preset whose constants are used as they are.
        protocol: how to fit to the table itself; None (without `fit` and `transport`): all that apply.

    Raises:
        ValueError: unknown columns, rows that are in both tables, or a protocol for which there are too few rows.
    """
    form = _require_form(table)
    parts = exchanges_of(table, form)
    if transport is not None:
        return [
            _comparison(f"{name}, {table.source} by {transport.name}", "preset", exchanges, kernel_for(transport, name))
            for name, exchanges in parts.items()
        ]
    if fit is not None:
        return _by_other_table(table, parts, fit, form)
    found = [
        comparison
        for name, exchanges in parts.items()
        for comparison in protocols_of(f"{name}, {table.source}", exchanges, form)
        if protocol in (None, comparison.protocol)
    ]
    if not found:
        raise ValueError(f"protocol fit={protocol} does not apply to {table.source}: it has no rows for it")
    return found


def _by_other_table(table: Table, parts: dict[str, list[Exchange]], fit: Table, form: str) -> list[Comparison]:
    if _require_form(fit) != form:
        raise ValueError(f"{fit.source} measures other kernels ({form_of(fit)}) than {table.source} ({form})")
    others = exchanges_of(fit, form)
    again = len(_identities(parts) & _identities(others))
    if again:
        raise ValueError(
            f"{again} rows of {table.source} are also in {fit.source}: a row is either fitted to or tested on"
        )
    shared = [name for name in parts if name in others]
    if not shared:
        raise ValueError(f"{fit.source} has none of the kernels of {table.source}: {', '.join(parts)}")
    return [
        _comparison(
            f"{name}, {table.source} by {fit.source}", "other_table", parts[name],
            fit_kernel(others[name], shapes_for(form, others[name])),
        )
        for name in shared
    ]  # fmt: skip


def _require_form(table: Table) -> str:
    form = form_of(table)
    if form is None:
        expected = "; or ".join(", ".join(columns) for columns in FORMS.values())
        raise ValueError(f"{table.source} is no table of communication: expected the columns {expected}")
    return form


def _identities(parts: dict[str, list[Exchange]]) -> set[tuple[Any, ...]]:
    return {
        (
            name,
            replace(one.layout, inside_bytes_per_s=0, between_bytes_per_s=0),
            one.row_bytes,
            one.sms,
            tokens,
            seconds,
        )
        for name, exchanges in parts.items()
        for one in exchanges
        for tokens, seconds in zip(one.tokens.tolist(), one.measured_s.tolist(), strict=True)
    }


def kernel_for(transport: Transport, name: str) -> Kernel:
    """The kernel of a transport that does what an exchange of that name measured."""
    return transport.combine if "combine" in name else transport.dispatch


def _comparison(data: str, protocol: str, exchanges: Sequence[Exchange], kernel: Kernel, note: str = "") -> Comparison:
    return Comparison(data, protocol, predicted(exchanges, kernel), measured(exchanges), note)


def protocols_of(data: str, exchanges: Sequence[Exchange], form: str) -> Iterator[Comparison]:
    """In-sample and leave-one-out comparisons that these rows allow."""
    yield _comparison(data, "in_sample", exchanges, fit_kernel(exchanges, shapes_for(form, exchanges)))
    if form == "published":
        return
    yield from _left_out(data, "leave_one_node_count_out", exchanges, form, lambda one: one.layout.num_nodes)
    if form in ("one_sided", "nccl"):
        yield from _left_out(data, "leave_one_ep_size_out", exchanges, form, lambda one: one.layout.num_ranks)


def _left_out(
    data: str, protocol: str, exchanges: Sequence[Exchange], form: str, size: Callable[[Exchange], int]
) -> Iterator[Comparison]:
    """Each size predicted from the others, for those that the others can tell of; the rest are named in the note."""
    lowest = 2  # of one node (or pair of ranks) larger sizes tell nothing: other links, other limits
    if protocol == "leave_one_ep_size_out":
        lowest = 3
    sizes = sorted({size(one) for one in exchanges if size(one) >= lowest})
    if len(sizes) < 3:
        return
    tested, guesses = [], []
    for held_out in sizes:
        rest = [one for one in exchanges if size(one) != held_out and (form != "low_latency" or size(one) > 1)]
        kernel = fit_kernel(rest, shapes_for(form, rest))
        tested += [one for one in exchanges if size(one) == held_out]
        guesses.append(predicted([one for one in exchanges if size(one) == held_out], kernel))
    left = sorted({size(one) for one in exchanges} - set(sizes))
    note = f"without {', '.join(map(str, left))}, of which the others tell nothing" if left else ""
    yield Comparison(data, protocol, np.concatenate(guesses), measured(tested), note)


def comparisons(skipped: list[str]) -> Iterator[Comparison]:
    """All data sets that are present, each protocol; what is absent adds a line to `skipped`."""
    for part in (_low_latency, _normal, _one_node, _nvlink, _nccl, _published, _rails):
        try:
            yield from part()
        except MissingDataError as error:
            skipped.append(f"communication: {error}")


def _low_latency() -> Iterator[Comparison]:
    for phase, exchanges in exchanges_of(packaged(NODES_TABLE.format("ll")), "low_latency").items():
        data = f"DeepEP low latency {phase}, H100, 7168"
        for nodes in (1, 2, 4, 8):
            part = [one for one in exchanges if one.layout.num_nodes == nodes]
            kernel = fit_kernel(part, shapes_for("low_latency", part))
            yield _comparison(f"{data}, {nodes} node{'s' * (nodes > 1)}", "in_sample", part, kernel)
        yield from protocols_of(f"{data}, 1 to 8 nodes", exchanges, "low_latency")


def _normal() -> Iterator[Comparison]:
    for phase, exchanges in exchanges_of(packaged(NODES_TABLE.format("normal")), "normal").items():
        enough = [one for one in exchanges if (one.sms or 0) >= ENOUGH_SMS]
        for nodes in (1, 2, 4, 8):
            part = [one for one in enough if one.layout.num_nodes == nodes]
            kernel = fit_kernel(part, shapes_for("normal", part))
            data = f"DeepEP normal {phase}, H100, {nodes} node{'s' * (nodes > 1)}"
            note = "an outlier: 18 GB/s, and a fall to a quarter from 16384 tokens" if nodes == 8 else ""
            yield _comparison(f"{data}, 20 and 24 SMs", "in_sample", part, kernel, note)
        several = [one for one in exchanges if one.layout.num_nodes in NORMAL_NODES]
        kernel = fit_kernel(several, shapes_for("normal", several))
        yield _comparison(f"DeepEP normal {phase}, H100, several nodes on 4 to 24 SMs", "in_sample", several, kernel)


def _one_node() -> Iterator[Comparison]:
    for form in ONE_NODE_KINDS:
        title = f"DeepEP {form.replace('_', ' ')}"
        for phase in ("dispatch", "combine"):
            by_gpu = {gpu: one_node(gpu, form, phase) for gpu in SYSTEMS}
            for gpu, exchanges in by_gpu.items():
                data = f"{title} {phase}, one {gpu.upper()} node, many shapes"
                kernel = fit_kernel(exchanges, shapes_for(form, exchanges))
                yield _comparison(data, "in_sample", exchanges, kernel, "layers of 32 experts and more")
            if form == "low_latency":
                yield _other_types(f"{title} {phase}, one node, many shapes", by_gpu, form)


def _nvlink() -> Iterator[Comparison]:
    for name, exchanges in exchanges_of(packaged(NVLINK_TABLE), "one_sided").items():
        yield from protocols_of(f"GB200 {name}", exchanges, "one_sided")


def _nccl() -> Iterator[Comparison]:
    parts = {gpu: exchanges_of(packaged(path), "nccl")["all-to-all"] for gpu, path in NCCL_TABLES.items()}
    for gpu, exchanges in parts.items():
        tested = nccl_rows(gpu, exchanges)
        kernel = fit_kernel(tested, shapes_for("nccl", tested))
        note = "8 GPUs: fewer share their host's links otherwise" if gpu == "l40s" else ""
        yield _comparison(f"NCCL all-to-all, {gpu.upper()}", "in_sample", tested, kernel, note)
    yield _other_types("NCCL all-to-all over NVLink", {gpu: parts[gpu] for gpu in NVLINK_SYSTEMS}, "nccl")


def _other_types(data: str, by_gpu: dict[str, list[Exchange]], form: str) -> Comparison:
    """Each type of GPU predicted from the others: bandwidths as parts of the data sheet's, start-ups as they are."""
    scaled = {gpu: [_scaled(one) for one in exchanges] for gpu, exchanges in by_gpu.items()}
    guesses = []
    for held_out in scaled:
        rest = [one for gpu, exchanges in scaled.items() if gpu != held_out for one in exchanges]
        guesses.append(predicted(scaled[held_out], fit_kernel(rest, shapes_for(form, rest))))
    tested = [one for exchanges in scaled.values() for one in exchanges]
    return Comparison(data, "leave_one_gpu_type_out", np.concatenate(guesses), measured(tested))


def _scaled(exchange: Exchange) -> Exchange:
    """The same on links of REFERENCE_BYTES_PER_S, with as many fewer or more bytes."""
    part = REFERENCE_BYTES_PER_S / exchange.layout.inside_bytes_per_s
    layout = replace(exchange.layout, inside_bytes_per_s=REFERENCE_BYTES_PER_S)
    return replace(exchange, layout=layout, row_bytes=exchange.row_bytes * part)


def _published() -> Iterator[Comparison]:
    """Low-latency kernels that others measured: DeepEP's under its preset, others' each node count from the rest."""
    for name, exchanges in exchanges_of(read_table(published_folder() / "ep_comm_published.csv"), "published").items():
        crossing = [one for one in exchanges if one.layout.num_nodes > 1]
        if " LL " not in name or not crossing:
            continue
        data = f"published {name}, between nodes"
        if name.startswith("DeepEP ") and "H100" in name:
            kernel = low_latency_kernel("h100", "combine" if "combine" in name else "dispatch")
            note = "an older version, which sends rows inside a node over the network as well"
            yield _comparison(data, "preset", crossing, kernel, note)
        else:
            yield from _left_out(
                data, "leave_one_node_count_out", crossing, "published", lambda one: one.layout.num_nodes
            )


def _rails() -> Iterator[Comparison]:
    for pattern in ("rail-aligned", "cross-rail"):
        size, seconds = rail_rows(pattern)
        line = rail_line(pattern)
        yield Comparison(f"EFA H100 {pattern} messages", "in_sample", line.startup_s + size / line.bytes_per_s, seconds)
