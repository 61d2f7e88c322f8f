"""Why our figures differ from the GRACE-MoE paper's, as far as our own rows show it."""

from collections.abc import Mapping, Sequence

from analysis.paper_steps import GROUPING, change, of_step
from analysis.results import Row

Reasons = Mapping[str, str]
"""Why a quantity differs, with the figures that show it; "open" where none does."""


def reasons(first: Sequence[Row], firsts: Mapping[str, Sequence[Row]]) -> Reasons:
    """What our own figures say of differences from the paper, for the rows of one model in the cell FIRST.

    Args:
        firsts: those rows of every model.
    """
    occult, grouped, uniform = (of_step(first, step) for step in ("Occult", "HG + HSC", "Occult + HSC"))
    share = 100 * uniform["all_to_all_s"] / uniform["total_s"]
    paper_share = 100 * GROUPING["Occult + HSC"][0] / GROUPING["Occult + HSC"][2]
    busiest = change(first, "busiest_node_rows_per_token", "HG + HSC", "Occult + HSC")
    in_prefill = change(first, "prefill_idle_s", "HG + HSC", "Occult + HSC")
    traffic_why = "open"
    if first[0]["synthetic"]:
        real = [f for f in firsts.values() if not f[0]["synthetic"]]
        fell = [f"{change(f, 'cross_node_rows_per_token', 'HG + HSC', 'Occult + HSC'):+.1f} %" for f in real]
        traffic_why = "synthetic trace: what a model's own experts are chosen with is not in it" + "".join(
            f"; on a recorded trace HG changes cross-node rows by {f}" for f in fell
        )
    return {
        "over slowest": "open: the paper's slowest is another engine, ours is index order with every pair sent",
        "end to end": f"all-to-all is {share:.0f} % of the time with Occult + HSC, {paper_share:.0f} % in the paper "
        "(OLMoE); what fills the rest there is open",
        "all-to-all time": traffic_why
        if first[0]["synthetic"]
        else f"a phase waits for the busiest direction of a node, whose rows HG changes by {busiest:+.1f} % only",
        "cross-node traffic": traffic_why,
        "intra-node traffic": "open",
        "std of GPU load": "open",
        "GPU idle time": f"open: waiting for late ranks in communication adds {1e3 * occult['waiting_s']:.1f} ms to "
        f"{1e3 * occult['idle_s']:.0f} ms (Occult) and {1e3 * grouped['waiting_s']:.1f} to "
        f"{1e3 * grouped['idle_s']:.0f} (HG) here; HG changes idle time by {in_prefill:+.0f} % in prefill alone, the "
        "rest is decode, where a rank reads the weights of each of its experts and HG's hold unequal numbers",
        "ms": "open: the paper gives no rate its software reaches; ours are sustained rates of links and GPUs",
    }
