"""The steps that the GRACE-MoE paper (arXiv 2509.25041) times, and its figures for them."""

from collections.abc import Sequence

from analysis.ablation import QUANTITIES, STEPS
from analysis.results import Row

FIRST = ("a100_25gbe_2x2", "256 x 128 + 16")
"""Cluster and workload of the paper's ablation and of its comparison with Occult."""
GRACE = "+ DR + TAR"
FIELDS = dict(
    zip(
        (*QUANTITIES, "end to end"),
        ("all_to_all_s", "cross_node_rows_per_token", "intra_node_rows_per_token", "idle_s", "load_std_over_mean",
         "total_s"),
        strict=True,
    )
)  # fmt: skip
"""Fields of a row by the quantity they hold."""
Step = tuple[str, str, str]
RUNS: tuple[Step, ...] = (
    ("index order, pairs", "linear", "pairs"),
    ("index order, flat", "linear", "flat"),
    ("index order + HSC", "linear", "hierarchical"),
    *((step.strip(), planner, scheme) for step, planner, scheme, _ in STEPS),
    ("fully non-uniform + HSC", "non_uniform", "hierarchical"),
    ("GRACE, padded HSC", "hg_dr_tar", "hierarchical_padded"),
)
OVER_SLOWEST = {"olmoe_1b_7b": 4.66, "deepseek_v2_lite": 3.73, "qwen3_30b_a3b": 4.47}
OVER_OCCULT = {"olmoe_1b_7b": 1.45, "deepseek_v2_lite": 1.31, "qwen3_30b_a3b": 1.31}
GROUPING = {
    "Occult + HSC": (3494, 502, 6328),
    "HG + HSC": (2846, 507, 5698),
    "fully non-uniform + HSC": (2826, 617, 5748),
}
"""OLMoE with uniform, controlled and free sizes of groups, in ms: all-to-all, idle, end to end."""
EFFECTS: tuple[tuple[str, str, str, dict[str, tuple[float, float]]], ...] = (
    ("HG", "HG + HSC", "Occult + HSC", {
        "olmoe_1b_7b": (-18.6, -19.2), "deepseek_v2_lite": (-18.0, -16.7), "qwen3_30b_a3b": (-24.7, -34.8)}),
    ("TAR", "+ DR + TAR", "+ DR + WRR", {
        "olmoe_1b_7b": (-9.5, -12.1), "deepseek_v2_lite": (-8.1, -12.4), "qwen3_30b_a3b": (-13.7, -29.4)}),
)  # fmt: skip
"""Step, with, without, and by model the change of all-to-all time and of cross-node traffic in percent."""


def of_step(rows: Sequence[Row], step: str) -> Row:
    """The row of a step, among those of one model, cluster and workload."""
    return next(row for row in rows if row["step"] == step)


def change(rows: Sequence[Row], field: str, new: str, old: str) -> float:
    """Percent by which a step's figure is above another's."""
    before, after = of_step(rows, old)[field], of_step(rows, new)[field]
    return float(100 * (after / before - 1)) if before else 0.0
