"""Constants of conf/transport/*.yaml from published measurements, and which of these each is fitted to."""

from collections.abc import Sequence
from dataclasses import fields, replace
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


def presets() -> dict[str, dict[str, Any]]:
    """Constants of conf/transport/*.yaml from data: by file `dispatch` and `combine`, in the fields of a Kernel.

    Raises:
        MissingDataError: the measurements are not on this machine.
    """
    made: dict[str, dict[str, Kernel]] = {}
    for gpu in SYSTEMS:
        for name, kernel_of in (("deepep_low_latency", low_latency_kernel), ("deepep_normal", normal_kernel)):
            made[f"{name}_{gpu}"] = {phase: kernel_of(gpu, phase) for phase in ("dispatch", "combine")}
    for gpu, path in NCCL_TABLES.items():
        rows = nccl_rows(gpu, exchanges_of(packaged(path), "nccl")["all-to-all"])
        kernel = fit_kernel(rows, shapes_for("nccl", rows))
        made[f"nccl_{gpu}"] = {"dispatch": kernel, "combine": kernel}
    nvlink = exchanges_of(packaged(NVLINK_TABLE), "one_sided")
    for preset, kernel_name in NVLINK_KERNELS.items():
        made[preset] = {
            phase: fit_kernel(rows, shapes_for("one_sided", rows))
            for phase, rows in ((phase, nvlink[f"{kernel_name} nvfp4 {phase}"]) for phase in ("dispatch", "combine"))
        }
    for gpu, inside_bytes_per_s in SLOWER_LINKS.items():
        for name in ("deepep_low_latency", "deepep_normal"):
            parts = made[f"{name}_h100"]
            made[f"{name}_{gpu}"] = {phase: _slower(kernel, inside_bytes_per_s) for phase, kernel in parts.items()}
    rail = Kernel(between=[rail_line("rail-aligned")])
    made["efa_h100"] = {"dispatch": rail, "combine": rail}
    uccl = exchanges_of(read_table(published_folder() / "ep_comm_published.csv"), "published")
    made["uccl_low_latency_efa_h200"] = {
        phase: fit_kernel(rows, shapes_for("published", rows))
        for phase, rows in ((phase, uccl[f"UCCL-EP LL {phase}, H200 p5en"]) for phase in ("dispatch", "combine"))
    }
    return {name: {phase: mapping(kernel) for phase, kernel in parts.items()} for name, parts in made.items()}


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
