"""`grace-opt advise`: what is advised where the answer is known by hand, and how bad input is answered."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.advise import advise
from analysis.whole_model import Passes
from grace_opt.backbone import Backbone
from grace_opt.configuration import read_configuration, run
from grace_opt.engines.export import export
from grace_opt.gpu import GPU
from grace_opt.homes import Balanced
from grace_opt.load_history import LoadHistory
from grace_opt.model import MoEModel
from grace_opt.plan_file import read_plan
from grace_opt.planners.joint import Joint
from grace_opt.problem import Problem
from grace_opt.split import Alternate
from grace_opt.topology import Topology
from grace_opt.trace_file import write_trace
from simulator.cluster import SimulatedCluster

COST = SimulatedCluster()
SMALL = Joint(COST, trials=500, time_limit_s=60, num_batches=2, num_tokens=200, num_maps=1)
FREE = GPU("free", flops_per_s=1e18, memory_bytes_per_s=1e18, memory_bytes=3000, launch_s=0.0, tile_tokens=1)
BUSY = replace(FREE, flops_per_s=300.0)  # an expert takes a second a token
PAIRS = [[0, 2], [1, 3]]  # whose experts are on different nodes by default


def machine(gpu: GPU, nodes: int, ranks: int, row_s: float) -> Topology:
    """Links inside a node take no time, a row of 20 bytes between nodes `row_s` seconds."""
    between = 20 / row_s if row_s else 1e15
    return Topology.two_level("hand", gpu, nodes, ranks, nic_of="rank", intra_bytes_per_s=1e15, intra_latency_s=0,
                              inter_bytes_per_s=between, inter_latency_s=1e-9)  # fmt: skip


@pytest.fixture
def ask(tmp_path: Path, model: MoEModel, make_trace: Callable) -> Callable[..., dict[str, Any]]:
    """(tokens of one layer, sequence lengths, changes) -> the advice, and the text as `text`."""

    def asked(tokens: Any, lengths: list[int], topology: Topology, **changes: Any) -> dict[str, Any]:
        tokens = np.array(tokens, np.uint8)
        given = {"top_k": tokens.shape[1], "num_experts": changes.pop("num_experts", 4)}
        given["backbone"] = changes.pop("backbone", None)
        fields = {name: changes.pop(name) for name in ("domains_of", "domain_names") if name in changes}
        if "domains_of" in fields:
            fields["domains"] = fields.pop("domains_of")
        trace = make_trace(tokens[None], lengths=lengths, num_experts=given["num_experts"], **fields)
        arguments = {
            "model": replace(model, bytes_per_weight=1e-9, **given), "topology": topology, "trace": trace,
            "split": Alternate(), "homes": Balanced(), "cost": COST, "planners": {"joint": SMALL},
            "passes": Passes(8, 4, 16), "output": str(tmp_path), "plan_for": ["prefill"], "redundancy": [0],
            "maps": 1, "resamples": 20, "interval_seconds": 1.0,
        }  # fmt: skip
        advise(**{**arguments, **changes})
        return json.loads((tmp_path / "result.json").read_text())["advice"]

    return asked


def alike(num: int, times: int = 4) -> tuple[list[list[int]], list[int]]:
    """Sequences that each hold both pairs equally often."""
    return PAIRS * times * num, [2 * times] * num


def test_two_cliques_that_the_default_parts_are_worth_a_placement_of_half_the_time(ask, capsys):
    """By default every token crosses (a row out and one back); with a clique a node, half of them do. Only rows between
    nodes take time, and every home has as many tokens of each clique. All sequences are alike: nothing varies."""
    advice = ask(*alike(32), machine(FREE, 2, 2, 1.0))
    assert advice["verdict"] == "use"
    gain = advice["gain"]
    assert (gain["mean"], gain["low"], gain["high"]) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    assert gain["resamples"] == 20
    terms = advice["terms"]["prefill"]
    assert terms["default"]["cross_node_bytes_per_token"] == pytest.approx(40)
    assert terms["advised"]["cross_node_bytes_per_token"] == pytest.approx(20)
    assert terms["default"]["destination_ranks_per_token"] == terms["advised"]["destination_ranks_per_token"] == 2
    text = capsys.readouterr().out
    assert "It saves 50.0 % (50.0 to 50.0 %) of the time" in text
    assert len(text.splitlines()) <= 40
    path = advice["plans"]["prefill"]["plan"]
    assert f"grace-opt export plan={path} engine=sglang" in text
    done = export(path, "sglang", str(Path(path).parent / "exported"))
    assert not [line for line in done.warnings if "filled" in line or "picks replicas" in line]
    plan = read_plan(path)
    assert plan.routing.policy == "tar"  # as SGLang runs it
    sides = [{int(plan.placement.slots[0, rank, 0]) for rank in node} for node in ((0, 1), (2, 3))]
    assert sorted(map(sorted, sides)) == PAIRS


def test_an_engine_that_gathers_all_tokens_is_left_as_it_is(ask, capsys):
    """The same cliques: rows are the same under any placement, and load is even."""
    advice = ask(*alike(32), machine(FREE, 2, 2, 1.0), all_to_all=False)
    assert (advice["verdict"], advice["next"]) == ("leave", [])
    assert advice["gain"]["mean"] == pytest.approx(0, abs=1e-9)
    assert "a placement changes no traffic, only load" in " ".join(capsys.readouterr().out.split())
    assert advice["terms"]["prefill"]["default"]["destination_ranks_per_token"] == 4
    assert any("priced as a row from each token to every rank" in line for line in advice["not_considered"])


def test_balanced_choices_without_structure_are_left_as_they_are(ask, capsys):
    pairs = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
    tokens = pairs[np.random.default_rng(0).integers(6, size=32 * 48)]
    advice = ask(tokens, [48] * 32, machine(FREE, 2, 2, 1.0))
    assert advice["verdict"] == "leave"
    assert abs(advice["gain"]["mean"]) < 0.02
    assert "LEAVE IT AS IT IS." in capsys.readouterr().out


def test_for_one_hot_expert_one_redundant_expert_suffices(ask, capsys):
    """Loads 6, 2, 2, 2 on two ranks. By default 8 and 4; with three slots each, 6 and 6 (0 and another on both): a
    quarter less. Nothing is left for a second redundant expert. Each slot of a layer holds 150 ns of bytes."""
    tokens = [[0], [1], [0], [2], [0], [3]] * 2 * 48
    advice = ask(tokens, [12] * 48, machine(BUSY, 1, 2, 0.0), engine="vllm", redundancy=[0, 1, 2],
                 passes=Passes(96, 4, 16))  # fmt: skip
    assert advice["verdict"] == "use"
    redundancy = advice["redundancy"]
    assert (redundancy["chosen"], redundancy["no_more"], redundancy["redundant_experts"]) == (1, [2], 2)
    assert redundancy["bytes"] == pytest.approx(2 * 3 * 10 * 5 * 1e-9)
    assert [of["gain"] for of in redundancy["curve"]] == pytest.approx([0, 0.25, 0.25], abs=0.02)
    default, advised = (advice["terms"]["prefill"][name] for name in ("default", "advised"))
    assert default["load_sum_of_means_over_sum_of_maxima"] == pytest.approx(0.75, abs=0.01)
    assert advised["load_sum_of_means_over_sum_of_maxima"] == pytest.approx(1, abs=0.03)
    assert advice["balance_field"] == "load_sum_of_means_over_sum_of_maxima"
    text = " ".join(capsys.readouterr().out.split())
    assert "More than 1 does not surely save another 1.0 %. 1 costs" in text


def test_a_gain_fades_on_a_domain_that_the_fit_never_saw(ask, capsys):
    """Eight experts in four pairs, each over both nodes by default; one domain uses two of them, the other the rest."""
    pairs = {0: [[0, 4], [1, 5]], 1: [[2, 6], [3, 7]]}
    domains = [0, 0, 1, 1] * 12
    tokens = [pair for domain in domains for pair in pairs[domain] * 4]
    advice = ask(tokens, [8] * 48, machine(FREE, 2, 2, 1.0), num_experts=8, domains_of=domains, domain_names=("a", "b"))
    fades = {of["domain"]: of for of in advice["domain_shift"]}
    assert set(fades) == {"a", "b"}
    assert all(of["seen"] == pytest.approx(0.5, abs=0.05) for of in fades.values())
    worst = min(fades.values(), key=lambda of: of["unseen"])
    assert worst["unseen"] < worst["seen"] - 0.2
    assert f"Domain shift: on {worst['domain']} it saves 50.0 % with such text" in capsys.readouterr().out
    assert not [line for line in advice["not_considered"] if line.startswith("domain shift")]


def test_few_sequences_give_no_interval_and_one_domain_is_said(ask, capsys):
    advice = ask(*alike(14, 8), machine(FREE, 2, 2, 1.0))
    assert (advice["gain"]["low"], advice["gain"]["resamples"]) == (None, 0)
    assert "No interval can be given: 7 held-out sequences are fewer than 8." in capsys.readouterr().out
    assert any("are of one domain (all)" in line for line in advice["not_considered"])


def test_both_passes_are_planned_apart_and_together(ask, capsys, tmp_path):
    """The cliques are the same in both, so one plan does for both."""
    advice = ask(*alike(32), machine(FREE, 2, 2, 1.0), plan_for=["decode", "prefill"])
    assert list(advice["plans"]) == ["prefill", "decode"]
    assert advice["request"] == {"prefill": 16, "decode": 256}
    assert not advice["separate"]["advised"]
    assert "one plan for prefill and decode" in capsys.readouterr().out
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["goal"] for row in rows if row["planner"] == "joint"} == {"all", "prefill", "decode"}
    assert {(row["pass"], row["split"]) for row in rows} == {("prefill", "held_out"), ("decode", "held_out")}


@dataclass(frozen=True)
class Interrupted:
    """A planner during which Ctrl-C comes."""

    def __call__(self, problem: Problem) -> Any:
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_leaves_what_was_priced_and_no_advice(ask, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"2 priced plans are in .*result\.json, without an advice"):
        ask(*alike(16), machine(FREE, 2, 2, 1.0), planners={"slow": Interrupted()})
    content = json.loads((tmp_path / "result.json").read_text())
    assert (content["status"], content["advice"]) == ("partial", None)
    assert [row["planner"] for row in content["rows"]] == ["linear", "eplb"]
    assert read_plan(tmp_path / content["rows"][0]["plan"]).num_ranks == 4


def test_a_planner_that_cannot_plan_is_a_row_with_its_error(ask, tmp_path):
    @dataclass(frozen=True)
    class Refuses:
        def __call__(self, problem: Problem) -> Any:
            raise ValueError("no plan today")

    ask(*alike(16), machine(FREE, 2, 2, 1.0), planners={"refuses": Refuses()})
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["error"] for row in rows if row["planner"] == "refuses"] == ["no plan today"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"engine": "sgland"}, "engine must be one of sglang, tensorrt_llm, vllm, vllm_ascend, omni, grace, got 'sgla"),
        ({"plan_for": []}, "plan_for must be [prefill], [decode] or [prefill,decode], got []"),
        ({"plan_for": ["train"]}, "plan_for must be [prefill], [decode] or"),
        ({"generated_tokens": 0}, "generated_tokens must be at least 1, got 0"),
        ({"redundancy": [4]}, "redundancy=4 is more than fits: at most 3 experts per rank and layer beside the 4 of"),
        ({"redundancy": [1, 1]}, "redundancy must list different numbers"),
        ({"redundancy": []}, "redundancy must list different numbers"),
        ({"min_gain": 1.0}, "min_gain must be a share of the time"),
        ({"resamples": -1}, "resamples must be at least 0, got -1"),
        ({"interval_seconds": 0.0}, "interval_seconds must be a positive number"),
        ({"maps": 0}, "maps must be at least 1"),
        ({"planners": {"eplb": SMALL}}, "planners.eplb: the engine's default and its own EPLB are always tried"),
        ({"planners": {"joint": replace(SMALL, homes="chosen")}}, "leave mix=null and homes=given"),
        ({"planners": {"joint": replace(SMALL, fill=True)}}, "policy and fill follow from engine"),
        ({"cost": replace(COST, tokens_per_rank=9)}, "cost.tokens_per_rank=9 is not used"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(ask, tmp_path, changes, expected):
    with pytest.raises(ValueError, match=".") as error:
        ask(*alike(16), machine(FREE, 2, 2, 1.0), **changes)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def recorded(tmp_path_factory: pytest.TempPathFactory, make_trace: Callable) -> Callable[..., str]:
    """(tokens of one layer, sequence lengths, fields) -> file of such a recording of decode."""

    def write(tokens: Any, lengths: list[int], **fields: Any) -> str:
        path = tmp_path_factory.mktemp("recordings") / "text_decode.safetensors"
        sequence = np.repeat(np.arange(len(lengths)), lengths)
        told = {"model": "toy", "num_experts": 4, "phase": "decode", "source": "hand", **fields}
        write_trace(path, expert_ids=np.array(tokens, np.uint8)[None], sequence=sequence,
                    domain=np.zeros_like(sequence), domain_names=("all",), **told)  # fmt: skip
        return str(path)

    return write


CROSSED = [[0, 3], [1, 2]]


def test_prefill_and_decode_with_a_recording_each_are_planned_and_judged_on_their_own(ask, recorded, tmp_path, capsys):
    """Prompts bring 0 and 2 together, passes that generate 0 and 3: one plan serves one of them, two serve both."""
    tokens, lengths = alike(32)
    crossed = [CROSSED[PAIRS.index(pair)] for pair in tokens]
    advice = ask(tokens, lengths, machine(FREE, 2, 2, 1.0), plan_for=["prefill", "decode"], generated_tokens=16,
                 decode_trace=recorded(crossed, lengths))  # fmt: skip
    assert advice["separate"]["advised"] is True
    assert advice["separate"]["gain"]["mean"] == pytest.approx(1 / 3, abs=0.01)  # 1.5 of 2 before, 1 of 2 after
    assert (advice["gain"]["mean"], advice["gain"]["low"]) == pytest.approx((0.5, 0.5), abs=0.01)
    for phase, pairs in (("prefill", PAIRS), ("decode", CROSSED)):
        slots = read_plan(advice["plans"][phase]["plan"]).placement.slots
        assert sorted(sorted(int(slots[0, rank, 0]) for rank in node) for node in ((0, 1), (2, 3))) == pairs
        assert advice["terms"][phase]["advised"]["cross_node_bytes_per_token"] == pytest.approx(20)
    assert advice["asked"]["decode"]["sequences"] == {"fit": 16, "held_out": 16}
    goals = {row["goal"] for row in json.loads((tmp_path / "result.json").read_text())["rows"]
             if row["planner"] == "eplb"}  # fmt: skip
    assert goals == {"prefill", "decode"}
    assert not any("stands for both" in line for line in advice["not_considered"])
    text = capsys.readouterr().out
    assert "decode: hand; planned on 16 sequences, judged on 16 others" in text
    assert "separate plans for prefill and decode." in text


def test_one_recording_given_twice_is_what_one_recording_says(ask, recorded):
    """Prices, intervals and decisions are the same; EPLB and others are planned on each, which are alike."""
    random = np.random.default_rng(5)
    tokens = np.array(PAIRS)[(random.random(32 * 8) < 0.5).astype(int)].tolist()
    both = {"plan_for": ["prefill", "decode"], "generated_tokens": 16}
    once = ask(tokens, [8] * 32, machine(FREE, 2, 2, 1.0), **both)
    twice = ask(tokens, [8] * 32, machine(FREE, 2, 2, 1.0), **both, decode_trace=recorded(tokens, [8] * 32))
    assert once["gain"] == twice["gain"]
    assert once["verdict"] == twice["verdict"] == "use"
    assert once["terms"]["decode"]["advised"] == twice["terms"]["decode"]["advised"]


@pytest.mark.parametrize(
    ("fields", "changes", "expected"),
    [
        ({"phase": "prefill"}, {}, "decode_trace must be a recording of decode, but it holds prefill (hand): trace"),
        ({"model": "other"}, {}, "other"),
        ({}, {"plan_for": ["prefill"]}, "decode_trace goes with plan_for=[prefill,decode], got ['prefill']"),
        ({}, {"planners": {"joint": replace(SMALL, robust="mean")}}, "joint: robust=mean goes with one recording"),
        (None, {"decode_trace": "nowhere.safetensors"}, "decode_trace=nowhere.safetensors does not exist"),
    ],
)  # fmt: skip
def test_a_wrong_recording_of_decode_is_one_line(ask, recorded, tmp_path, fields, changes, expected):
    given = {"plan_for": ["prefill", "decode"]}
    if fields is not None:
        given["decode_trace"] = recorded(*alike(16), **fields)
    with pytest.raises((ValueError, FileNotFoundError), match=".") as error:
        ask(*alike(16), machine(FREE, 2, 2, 1.0), **{**given, **changes})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_whole_models_gain_is_less_than_that_of_its_layers_and_has_an_interval(ask, capsys):
    """All sequences are alike, so the interval is a point; attention and dense parts take time that no plan saves."""
    advice = ask(*alike(32), machine(replace(FREE, flops_per_s=1e5, memory_bytes=10_000), 2, 2, 1e-2),
                 plan_for=["prefill", "decode"], generated_tokens=16,
                 backbone=Backbone(num_heads=1, num_kv_heads=1, head_size=2, vocab_size=8))  # fmt: skip
    for phase in ("prefill", "decode"):
        default, advised = (advice["terms"][phase][name] for name in ("default", "advised"))
        gain = advised["step_gain"]
        assert gain["mean"] == pytest.approx(1 - advised["step_s"] / default["step_s"], rel=1e-9)
        assert 0 < gain["mean"] < advice["plans"][phase]["mean"]
        assert (gain["low"], gain["high"]) == pytest.approx((gain["mean"],) * 2, rel=1e-6)
        assert advised["step_s_interval"] == pytest.approx([advised["step_s"]] * 2, rel=1e-6)
    text = " ".join(capsys.readouterr().out.split())
    assert "Of the whole model's time it saves: time to first token" in text


def test_counts_alone_are_refused_in_one_line(model, tmp_path):
    history = LoadHistory(np.ones((4, 1, 4), np.int64), top_k=2, source="counts.json")
    with pytest.raises(
        ValueError, match=r"needs? token-level routing, but the trace holds counts only \(counts.json\)"
    ):
        advise(model, machine(FREE, 2, 2, 1.0), history, Alternate(), Balanced(), COST, {}, Passes(), str(tmp_path))


def test_the_command_is_configured_and_runs_on_the_embedded_sample(tmp_path, capsys):
    overrides = ["plan_for=[decode]", "redundancy=[0]", "maps=1", "resamples=0", "domains=0", "planners.joint.trials=1"]
    run(read_configuration("advise", [*overrides, f"output={tmp_path}", "engine=grace", "min_gain=0.9"]))
    text = capsys.readouterr().out
    assert "LEAVE IT AS IT IS. No plan that was tried saves more than 90.0% (min_gain)." in text
    assert "time per token" in text
    assert "No interval can be given: resamples=0." in text
