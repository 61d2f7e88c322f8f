"""Which constants a kernel of each form of table has, and where the search for them begins."""

from collections.abc import Sequence

from simulator.calibration.exchanges import Exchange
from simulator.calibration.kernel_fit import Shape

FILL_BYTES_PER_S = 4.28e12
"""Zeros written by a GB200. By TensorRT-LLM's two-sided kernel on 2 ranks, which no protocol holds out, a bf16 combine
takes 26.8 ns a token longer than a bf16 dispatch of the same rows, for 8 places of 14336 bytes; on 4, 8, 16, 32 and 64
ranks 29.9, 26.8, 26.5, 27.0 and 27.0."""


def shapes_for(form: str, exchanges: Sequence[Exchange], **fixed: float) -> list[Shape]:
    """Starting points of a fit: which constants a kernel of that form has, and where the search begins."""
    row = {"row_bytes_per_s": 5e9}
    inside_cap = exchanges[0].layout.inside_bytes_per_s
    speed = 0.6 * inside_cap if inside_cap < 1e13 else _fastest(exchanges)
    crosses = any(exchange.layout.num_nodes > 1 for exchange in exchanges)
    stays = any(exchange.layout.num_nodes == 1 for exchange in exchanges)
    if form == "normal":
        rates = {"inside": 17e9} if stays else {"between": 16e9}
        sm = {**{f"sm_{scope}_bytes_per_s": rate for scope, rate in rates.items()}, "sm_row_bytes": 1000.0}
        lines = [
            (
                [_line(40e-6, speed, **row), _line(25e-6, speed * part, least_s=27e-6, **row)],
                [_line(high, 46e9, spread_s=1e-5), _line(low, slow, spread_s=1e-5)],
            )
            for part, high, low, slow in ((0.1, 45e-6, 20e-6, 25e9), (0.3, 100e-6, 45e-6, 20e9))
        ]
        fixed = {"pipelined": True, "places_rows": True, **fixed}
        return [Shape(inside if stays else [], between if crosses else [], sm, fixed) for inside, between in lines]
    if form in ("low_latency", "published"):
        between = [_line(15e-6, 46e9, spread_s=1e-5)]
        inside = [_line(9e-6, speed, least_s=12e-6, expert_s=1e-8, **row)]
        return [Shape(inside if stays else [], between if crosses else [], {}, {"places_rows": True})]
    if form == "one_sided":
        if exchanges[0].fills:
            fixed = {"fill_bytes_per_s": FILL_BYTES_PER_S, **fixed}
        starts = [
            _line(8e-6, speed, least_s=12e-6, round_s=2e-6, pair_bytes_per_s=speed * part, half_ends=500.0)
            for part in (0.2, 0.5)
        ]
        return [Shape([line], [], {}, {"places_rows": True, **fixed}) for line in starts]
    return [
        Shape([_line(12e-6, speed, round_s=1e-6, pair_bytes_per_s=speed),
               _line(5e-6, speed * part, least_s=6e-6, round_s=1e-6, pair_bytes_per_s=speed * part)])
        for part in (0.05, 0.2)
    ]  # fmt: skip


def _line(startup_s: float, bytes_per_s: float, **more: float) -> dict[str, float]:
    return {"startup_s": startup_s, "bytes_per_s": bytes_per_s, **more}


def _fastest(exchanges: Sequence[Exchange]) -> float:
    """Bytes/s of the fastest measurement, counted as what its ranks hold."""
    return max(float((one.tokens * one.row_bytes * one.layout.top_k / one.measured_s).max()) for one in exchanges)
