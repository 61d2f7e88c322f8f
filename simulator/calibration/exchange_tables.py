"""Published tables of communication, read into exchanges: what was moved, on how many ranks, in what time.

low_latency  DeepEP's low-latency kernels; tokens of a rank, microseconds
normal       DeepEP's normal kernels; tokens of a rank, microseconds; the time to tell receivers the counts (notify)
             stands in columns of its own and is left out
one_sided    NVLink all-to-all of TensorRT-LLM; tokens of a rank, milliseconds; choices are spread evenly over ranks
nccl         all-to-all of NCCL; message_size counts elements of a rank, milliseconds
published    transcribed latencies of several libraries, microseconds
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from simulator.calibration.exchanges import Exchange, Layout
from simulator.calibration.tables import Table
from simulator.row_bytes import row_bytes

FORMS: dict[str, tuple[str, ...]] = {
    "low_latency": ("node_num", "hidden_size", "num_token", "num_topk", "num_experts", "dispatch_avg_t_us",
                    "combine_avg_t_us"),
    "normal": ("node_num", "hidden_size", "num_token", "num_topk", "num_experts", "dispatch_sms", "combine_sms",
               "dispatch_transmit_us", "combine_transmit_us"),
    "one_sided": ("kernel_source", "op_name", "moe_dtype", "num_tokens", "hidden_size", "topk", "num_experts",
                  "moe_ep_size", "latency"),
    "nccl": ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency"),
    "published": ("hardware", "library", "mode", "phase", "nodes", "ranks", "tokens_per_rank", "hidden", "topk",
                  "experts", "dtype", "latency_us"),
}  # fmt: skip
"""Columns of each form; others are not used."""

TEXTS = ("kernel_source", "op_name", "moe_dtype", "nccl_dtype", "hardware", "library", "mode", "phase", "dtype")
MOST = {"node_num": 128, "num_gpus": 1024, "moe_ep_size": 1024, "nodes": 128, "ranks": 1024}

CAPACITY: tuple[tuple[str, float, float], ...] = (
    ("A100", 300e9, 25e9),
    ("H100", 450e9, 50e9),
    ("H200", 450e9, 50e9),
    ("GB200", 900e9, 100e9),
    ("GB300", 900e9, 100e9),
    ("B200", 900e9, 100e9),
    ("B300", 900e9, 100e9),
    ("L40S", 32e9, 25e9),
    ("RTX PRO 6000", 64e9, 50e9),
)
"""Data-sheet bytes/s of a rank's link in the node (NVLink, PCIe) and of its network card, by part of the name."""
UNKNOWN_CAPACITY = (1e15, 1e15)
HEADER_BYTES = 16  # DeepEP's low-latency dispatch sends with each row
ELEMENT_BYTES = {"half": 2.0, "int8": 1.0, "float": 4.0, "bfloat16": 2.0}
TWO_SIDED = "NVLinkTwoSided"
"""Its combine writes each choice's row to a place of its own, filled with zeros before, and is measured without the sum
over them (TensorRT-LLM, `mnnvl_moe_alltoallv_combine` with do_reduce false)."""
ROW_TYPES = {"bfloat16": "bf16", "fp8": "fp8_tensor", "nvfp4": "nvfp4"}


def form_of(table: Table) -> str | None:
    """The form whose columns the table has; None if it is of no known form."""
    return next((form for form, columns in FORMS.items() if all(name in table for name in columns)), None)


def exchanges_of(table: Table, form: str) -> dict[str, list[Exchange]]:
    """Exchanges of a table by kernel: `dispatch`, `combine`, or what else tells kernels apart in that form.

    Raises:
        ValueError: the table has no row that can be used.
    """
    _require_numbers(table, form)
    found = _READERS[form](table)
    found = {name: exchanges for name, exchanges in found.items() if exchanges}
    if not found:
        raise ValueError(f"{table.source} has no rows that tell time, tokens and ranks of a dispatch or combine")
    return found


def _require_numbers(table: Table, form: str) -> None:
    """Raise ValueError unless columns of numbers hold positive ones (in transcribed tables some are unknown)."""
    for name in FORMS[form]:
        if name in TEXTS:
            continue
        values = table[name]
        usable = values.dtype.kind == "f" and (form == "published" or bool((np.isfinite(values) & (values > 0)).all()))
        if not usable:
            odd = values if values.dtype.kind != "f" else values[~(np.isfinite(values) & (values > 0))]
            raise ValueError(f"{table.source}: {name} must be positive numbers, got {str(odd[0])!r}")
    for name, most in MOST.items():
        if name in FORMS[form] and not (table[name][np.isfinite(table[name])] <= most).all():
            raise ValueError(f"{table.source}: {name} must be at most {most}, got {np.nanmax(table[name]):g}")
    for name in ("num_gpus", "moe_ep_size"):
        if name in FORMS[form] and (table[name] < 2).any():
            raise ValueError(f"{table.source}: {name} must be at least 2, as one rank alone sends nothing")


def groups(table: Table, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], Table]]:
    """Rows that agree in some columns, with what they agree in."""
    keys = list(zip(*(table[name].tolist() for name in names), strict=True))
    for key in dict.fromkeys(keys):
        yield key, table.where(np.array([other == key for other in keys]))


def capacity(table: Table) -> tuple[float, float]:
    """Data-sheet bytes/s inside and between nodes of the device a table names; as good as unlimited if unknown."""
    device = str(table["device"][0]) if "device" in table else ""
    return next(((inside, between) for name, inside, between in CAPACITY if name in device), UNKNOWN_CAPACITY)


def _ranks_per_node(table: Table) -> int:
    device = str(table["device"][0]) if "device" in table else ""
    return 4 if device.removeprefix("NVIDIA ").startswith("GB") else 8


def _low_latency(table: Table) -> dict[str, list[Exchange]]:
    found: dict[str, list[Exchange]] = {"dispatch": [], "combine": []}
    for (nodes, hidden, top_k, experts), rows in groups(table, FORMS["low_latency"][:2] + FORMS["low_latency"][3:5]):
        layout = Layout(int(nodes), _ranks_per_node(table), *capacity(table), "uniform", int(experts), int(top_k))
        for phase, size in (("dispatch", row_bytes(int(hidden), "fp8") + HEADER_BYTES), ("combine", 2 * hidden)):
            seconds = rows[f"{phase}_avg_t_us"] * 1e-6
            found[phase].append(
                Exchange(layout, "low_latency", phase == "combine", size, None, rows["num_token"], seconds)
            )
    return found


def _normal(table: Table) -> dict[str, list[Exchange]]:
    found: dict[str, list[Exchange]] = {"dispatch": [], "combine": []}
    for phase in found:
        names = ("node_num", "hidden_size", "num_topk", "num_experts", f"{phase}_sms")
        for (nodes, hidden, top_k, experts, sms), rows in groups(table, names):
            layout = Layout(int(nodes), _ranks_per_node(table), *capacity(table), "grouped", int(experts), int(top_k))
            size = row_bytes(int(hidden), "fp8" if phase == "dispatch" else "bf16")
            seconds = rows[f"{phase}_transmit_us"] * 1e-6
            found[phase].append(
                Exchange(layout, "hierarchical", phase == "combine", size, int(sms), rows["num_token"], seconds)
            )
    return found


def _one_sided(table: Table) -> dict[str, list[Exchange]]:
    found: dict[str, list[Exchange]] = {}
    names = ("kernel_source", "op_name", "moe_dtype", "hidden_size", "topk", "num_experts", "moe_ep_size")
    for (kernel, operation, value_type, hidden, top_k, experts, ranks), rows in groups(table, names):
        if operation not in ("alltoall_dispatch", "alltoall_combine") or value_type not in ROW_TYPES:
            continue  # preparation and low-precision combine are other kernels
        inside, _ = capacity(table)
        layout = Layout(1, int(ranks), inside, 1e15, "even", int(experts), int(top_k))
        phase = operation.removeprefix("alltoall_")
        size = row_bytes(int(hidden), ROW_TYPES[value_type] if phase == "dispatch" else "bf16")
        back, fills = phase == "combine", phase == "combine" and kernel == TWO_SIDED
        exchange = Exchange(layout, "flat", back, size, None, rows["num_tokens"], rows["latency"] * 1e-3, fills)
        found.setdefault(f"{kernel} {value_type} {phase}", []).append(exchange)
    return found


def _nccl(table: Table) -> dict[str, list[Exchange]]:
    found = []
    for (operation, value_type, ranks), rows in groups(table, ("op_name", "nccl_dtype", "num_gpus")):
        if operation != "alltoall" or value_type not in ELEMENT_BYTES:
            continue
        layout = Layout(1, int(ranks), capacity(table)[0], 1e15, "all_to_all", int(ranks), 1)
        size = ELEMENT_BYTES[value_type]
        found.append(Exchange(layout, "pairs", False, size, None, rows["message_size"], rows["latency"] * 1e-3))
    return {"all-to-all": found}


def _published(table: Table) -> dict[str, list[Exchange]]:
    found: dict[str, list[Exchange]] = {}
    numbers = ("nodes", "ranks", "tokens_per_rank", "hidden", "topk", "experts", "latency_us")
    complete = np.all([np.isfinite(table[name]) for name in numbers], axis=0)
    table = table.where(
        complete & np.isin(table["phase"], ("dispatch", "combine")) & np.isin(table["mode"], ("LL", "HT"))
    )
    names = ("library", "hardware", "mode", "phase", "nodes", "ranks", "hidden", "topk", "experts", "dtype")
    for (library, hardware, mode, phase, nodes, ranks, hidden, top_k, experts, value_type), rows in groups(
        table, names
    ):
        kinds = value_type.split("/")
        kind = kinds[-1] if phase == "combine" else kinds[0]
        if kind not in ("fp8", "bf16"):
            continue
        routing, scheme = ("uniform", "low_latency") if mode == "LL" else ("grouped", "hierarchical")
        layout = Layout(int(nodes), int(ranks / nodes), *UNKNOWN_CAPACITY, routing, int(experts), int(top_k))
        size = row_bytes(int(hidden), kind) + HEADER_BYTES * (mode == "LL" and phase == "dispatch")
        seconds = rows["latency_us"] * 1e-6
        exchange = Exchange(layout, scheme, phase == "combine", size, None, rows["tokens_per_rank"], seconds)
        found.setdefault(f"{library} {mode} {phase}, {hardware}", []).append(exchange)
    return found


_READERS: dict[str, Callable[[Table], dict[str, list[Exchange]]]] = {
    "low_latency": _low_latency,
    "normal": _normal,
    "one_sided": _one_sided,
    "nccl": _nccl,
    "published": _published,
}
