"""Constants of conf/transport/*.yaml from published measurements, and which of these each is fitted to."""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from simulator.calibration.exchange_tables import exchanges_of
from simulator.calibration.exchanges import Exchange
from simulator.calibration.kernel_fit import fit_kernel
from simulator.calibration.kernel_shapes import shapes_for
from simulator.calibration.tables import packaged, published_folder, read_table
from simulator.transport import SCOPES, Kernel, Protocol

NODES_TABLE = "h100_sxm/comm/sglang/0.5.6.post2/wideep_deepep_{}_perf.parquet"
ONE_NODE_TABLE = "{}/comm/sglang/0.5.12/wideep_deepep_{}_perf.parquet"
ONE_NODE_KINDS = {"low_latency": "ll", "normal": "normal"}
NVLINK_TABLE = "gb200/comm/trtllm/1.3.0rc10/trtllm_alltoall_perf.parquet"
NCCL_TABLES = {
    "a100": "a100_sxm/comm/nccl/2.27.3/nccl_perf.parquet",
    "h100": "h100_sxm/comm/nccl/2.29.2/nccl_perf.parquet",
    "h200": "h200_sxm/comm/nccl/2.29.2/nccl_perf.parquet",
    "b200": "b200_sxm/comm/nccl/2.29.2/nccl_perf.parquet",
    "gb200": "gb200/comm/nccl/2.29.2/nccl_perf.parquet",
    "l40s": "l40s/comm/nccl/2.27.3/nccl_perf.parquet",
    "rtx_pro_6000": "rtx_pro_6000_server/comm/nccl/2.29.2/nccl_perf.parquet",
}
SYSTEMS = {"h100": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm", "gb200": "gb200"}
NVLINK_SYSTEMS = ("a100", "h100", "h200", "b200", "gb200")
FEW_EXPERTS = 32
"""Of layers with fewer the low-latency kernels serve each expert with few blocks: up to ten times slower."""
ENOUGH_SMS = 20
"""Of DeepEP's normal kernels between nodes: with fewer, some of the measurements are out of any order (12 SMs on 2
nodes move less than 8 or 16 would lead to expect)."""
NORMAL_NODES = (2, 4)
"""8 nodes of the published normal kernels are an outlier: 18 GB/s where 2 and 4 nodes reach 44 to 48."""
NVLINK_KERNELS = {"nvlink_one_sided_gb200": "NVLinkOneSided", "nvlink_two_sided_gb200": "NVLinkTwoSided"}
SLOWER_LINKS = {"h800": 160e9, "h20": 360e9}
"""Usable NVLink bytes/s of relatives of H100, of which nobody published kernel times; by DeepEP and InferSim."""


def one_node(gpu: str, form: str, phase: str) -> list[Exchange]:
    """DeepEP's kernels on one node of many models' shapes; on every other number of SMs, of those with many rows."""
    table = packaged(ONE_NODE_TABLE.format(SYSTEMS[gpu], ONE_NODE_KINDS[form]))
    return [
        one
        for one in exchanges_of(table, form)[phase]
        if one.layout.num_experts >= FEW_EXPERTS and one.sms in (None, 4, 12, 20, 24)
    ]


def nccl_rows(gpu: str, exchanges: Sequence[Exchange]) -> list[Exchange]:
    """The rows a preset is fitted to: on PCIe without switches (L40S) those of 8 GPUs only."""
    return [one for one in exchanges if gpu != "l40s" or one.layout.num_ranks == 8]


def rail_rows(pattern: str) -> tuple[Any, Any]:
    """Bytes and seconds of a message, from the bandwidths published by size."""
    table = read_table(published_folder() / "efa_rail_vs_crossrail_p5.csv")
    table = table.where(table["pattern"] == pattern)
    size = table["message_KB"] * 1024
    return size, size / (table["GBps"] * 1e9)


def rail_line(pattern: str) -> Protocol:
    """Least squares of the relative error of a straight line."""
    size, seconds = rail_rows(pattern)
    weight = np.stack([1 / seconds, size / seconds], axis=1)
    (startup, per_byte), *_ = np.linalg.lstsq(weight, np.ones(len(size)), rcond=None)
    return Protocol(float(startup), float(1 / per_byte))


def low_latency_kernel(gpu: str, phase: str) -> Kernel:
    """DeepEP's low-latency kernel: inside a node as measured on that GPU, between nodes as on H100 with 400G cards."""
    own = one_node(gpu, "low_latency", phase)
    several = [
        one
        for one in exchanges_of(packaged(NODES_TABLE.format("ll")), "low_latency")[phase]
        if one.layout.num_nodes > 1
    ]
    inside = fit_kernel(own, shapes_for("low_latency", own))
    return replace(inside, between=fit_kernel(several, shapes_for("low_latency", several)).between)


def normal_kernel(gpu: str, phase: str) -> Kernel:
    """DeepEP's normal kernel: inside a node as measured on that GPU, between nodes as on H100 with 400G cards."""
    own = one_node(gpu, "normal", phase)
    several = [
        one
        for one in exchanges_of(packaged(NODES_TABLE.format("normal")), "normal")[phase]
        if one.layout.num_nodes in NORMAL_NODES and (one.sms or 0) >= ENOUGH_SMS
    ]
    inside = fit_kernel(own, shapes_for("normal", own))
    between = fit_kernel(several, shapes_for("normal", several, sm_row_bytes=inside.sm_row_bytes))
    return replace(inside, between=between.between, sm_between_bytes_per_s=between.sm_between_bytes_per_s, sms=24)


PHASES = ("dispatch", "combine")


def preset_names() -> list[str]:
    """The files of conf/transport/ whose constants are fitted to data, or derived from such."""
    deepep = [f"deepep_{kind}_{gpu}" for kind in ONE_NODE_KINDS for gpu in (*SYSTEMS, *SLOWER_LINKS)]
    return [*deepep, *(f"nccl_{gpu}" for gpu in NCCL_TABLES), *NVLINK_KERNELS, "efa_h100", "uccl_low_latency_efa_h200"]


def presets(names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Constants of conf/transport/*.yaml from data: by file `dispatch` and `combine`, in the fields of a Kernel.

    Args:
        names: which of `preset_names`; None for all, which takes a minute.

    Raises:
        MissingDataError: the measurements are not on this machine.
    """
    chosen = [name for name in preset_names() if names is None or name in names]
    return {name: {phase: mapping(preset_kernel(name, phase)) for phase in PHASES} for name in chosen}


@lru_cache(maxsize=64)
def preset_kernel(name: str, phase: str) -> Kernel:
    """The kernel of one of `preset_names`."""
    library, _, gpu = name.rpartition("_")
    if gpu in SLOWER_LINKS:
        return _slower(preset_kernel(f"{library}_h100", phase), SLOWER_LINKS[gpu])
    if library == "deepep_low_latency":
        return low_latency_kernel(gpu, phase)
    if library == "deepep_normal":
        return normal_kernel(gpu, phase)
    if name == "efa_h100":
        return Kernel(between=[rail_line("rail-aligned")])
    if name in NVLINK_KERNELS:
        form, rows = (
            "one_sided",
            exchanges_of(packaged(NVLINK_TABLE), "one_sided")[f"{NVLINK_KERNELS[name]} nvfp4 {phase}"],
        )
    elif name.startswith("nccl_"):
        gpu = name.removeprefix("nccl_")
        form, rows = "nccl", nccl_rows(gpu, exchanges_of(packaged(NCCL_TABLES[gpu]), "nccl")["all-to-all"])
    else:
        table = read_table(published_folder() / "ep_comm_published.csv")
        form, rows = "published", exchanges_of(table, "published")[f"UCCL-EP LL {phase}, H200 p5en"]
    return fit_kernel(rows, shapes_for(form, rows))


def _slower(kernel: Kernel, inside_bytes_per_s: float) -> Kernel:
    """The same kernel on links inside a node that carry no more than this."""
    inside = [replace(line, bytes_per_s=min(line.bytes_per_s, inside_bytes_per_s)) for line in kernel.inside]
    return replace(kernel, inside=inside)


def mapping(kernel: Kernel) -> dict[str, Any]:
    """Fields of a kernel that are not at their defaults."""
    found: dict[str, Any] = {
        f.name: getattr(kernel, f.name) for f in fields(Kernel) if getattr(kernel, f.name) != f.default
    }
    for scope in SCOPES:
        if scope in found:
            found[scope] = [
                {f.name: getattr(part, f.name) for f in fields(Protocol) if getattr(part, f.name) != f.default}
                for part in found[scope]
            ]
    return found
