"""Many ranks under a plan generate the tokens, choose the experts and compute the logits of one device."""

import copy
import dataclasses
import functools
import itertools
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors import safe_open
from safetensors.torch import save_file

from grace_opt.gpu import GPU
from grace_opt.homes import Random
from grace_opt.model import MoEModel
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.planners.eplb import Eplb
from grace_opt.planners.grace import Grace
from grace_opt.planners.linear import Linear
from grace_opt.problem import Problem
from grace_opt.routing import Routing
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from runtime.engine import Engine, check_plan, decode, generate, prefill
from runtime.layer import DISPATCHERS
from runtime.replica_choice import ReplicaChoice
from runtime.sample.checkpoint import save_model
from runtime.sample.model import SampleConfig, SampleMoE
from runtime.sample.record import record
from runtime.sample.text import Tokenizer
from runtime.stopwatch import Stopwatch

pytestmark = pytest.mark.xdist_group("four_processes")  # the processes are started once

RANKS, STEPS = 4, 8
TOKENIZER = Tokenizer(())
CONFIG = SampleConfig(TOKENIZER.num_tokens, num_layers=2, num_experts=16, top_k=4, hidden=32, ffn=16, num_heads=2)
PLANNERS = {"linear": Linear(), "eplb": Eplb(), "grace": Grace()}
PLANS = (*PLANNERS, "a_rank_without_experts")
SEQUENCES = {"even": (2, 2, 2, 2), "a_rank_without": (3, 0, 4, 1)}
BATCHES = ((1, "a_rank_without"), (17, "a_rank_without"), (17, "even"))  # length of the prompts, how they are dealt
CASES = [(plan, scheme, *batch) for plan in PLANS for scheme in DISPATCHERS for batch in BATCHES]


@functools.cache
def model():
    """Untrained, with attention and experts weighing enough to decide which token comes next.

    With this seed the router's nearest choices are 9e-5 apart, and the nearest tokens 2e-2: far more than executions
    differ, so ids and tokens must be the same.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        whole = SampleMoE(CONFIG)
        for layer in whole.layers:
            layer.attention.out *= 4
            layer.experts.down *= 4
    return whole.eval()


def prompts(length):
    """The same [8, length] on every rank."""
    return torch.randint(CONFIG.vocabulary, (8, length), generator=torch.Generator().manual_seed(length))


@functools.cache
def plan_of(name):
    if name == "a_rank_without_experts":
        ranks = np.arange(CONFIG.num_experts)[None].repeat(CONFIG.num_layers, 0) % (RANKS - 1)
        return Plan("sample-moe", (0, 1), (2, 2), Placement.from_rank_of_expert(ranks, RANKS), Routing("primary"))
    ids = record(model(), prompts(32).numpy())
    starts = np.arange(0, ids.shape[1], 32)
    trace = Trace(ids, starts, starts + 32, np.zeros(len(starts)), ("made up",), CONFIG.num_experts, synthetic=True)
    shape = MoEModel("sample-moe", CONFIG.num_layers, CONFIG.num_experts, CONFIG.top_k, CONFIG.hidden, CONFIG.ffn)
    gpu = GPU("toy", 1e12, 1e12, 1e12)
    topology = Topology.two_level("toy", gpu, 2, 2, 1e11, 1e-6, 1e10, 1e-5)
    planner = PLANNERS[name]
    problem = Problem(shape, topology, Random(0)(trace, RANKS), 4 if name == "linear" else 6)
    if name == "grace":
        problem = Problem(shape, topology, problem.trace, max(6, planner.slots_wanted(problem)))
    return planner(problem).plan


def generated(engine, tokens):
    """Arrays: the tokens that follow, logits after the prompt and after the last of them, expert ids of every pass."""
    sequences = prefill(engine, tokens, tokens.shape[1] + STEPS, record=True)
    kept = {"prompt_logits": sequences.logits, "tokens": decode(engine, sequences, STEPS), "logits": sequences.logits}
    kept |= {f"ids/{number}": ids for number, ids in enumerate(sequences.chosen)}
    return {name: tensor.numpy() for name, tensor in kept.items()}


def share(rank, dealt):
    """Which of the 8 sequences a rank has."""
    stops = np.cumsum(SEQUENCES[dealt])
    return slice(stops[rank] - SEQUENCES[dealt][rank], stops[rank])


def work(rank, folder):
    """One rank: run every case, keep what was generated, held and timed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    kept = {}
    for plan, scheme in itertools.product(PLANS, DISPATCHERS):
        engine = Engine.of_plan(plan_of(plan), f"{folder}/model.safetensors", scheme)
        for prefill_length, dealt in BATCHES:
            mine = prompts(prefill_length)[share(rank, dealt)]
            arrays = generated(engine, mine)
            kept |= {f"{plan}/{scheme}/{prefill_length}/{dealt}/{name}": array for name, array in arrays.items()}
        kept[f"{plan}/held"] = [len(layer.experts.weights.gate) for layer in engine.experts]
        kept[f"{plan}/dense"] = sum(parameter.numel() for parameter in engine.dense.parameters())
    watch = Stopwatch(dist.barrier)
    generate(dataclasses.replace(engine, watch=watch), mine, STEPS)
    watch.stop()
    kept |= {f"visits/{phase}": len(seconds) for phase, seconds in watch.visits.items()}
    np.savez(os.path.join(folder, f"{rank}.npz"), **kept)
    dist.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("ranks") / "model.safetensors"
    save_model(file, model(), TOKENIZER)
    return file


@pytest.fixture(scope="module")
def ran(path, forked):
    """What each of four processes kept; `forked` has their server import torch once."""
    for name in PLANS:  # compiles here what each process would compile for itself
        ReplicaChoice.of_plan(plan_of(name), 0, home=0)(torch.zeros(1, CONFIG.top_k, dtype=torch.long))
    multiprocessing.start_processes(work, args=(str(path.parent),), nprocs=RANKS, start_method="forkserver")
    return [dict(np.load(path.parent / f"{rank}.npz")) for rank in range(RANKS)]


@functools.cache
def one_device(prefill_length):
    return generated(model(), prompts(prefill_length))


def tolerance():
    """Of logits. One MoE layer differs by at most (4 + sqrt(D)) units of float32 of its magnitude (see test_layer), and
    so may the attention, whose sums run in another order for another number of sequences. Every branch reads a
    normalised stream and so passes a relative difference on about as large as it is; a factor of 4 is for the branches
    that magnify. A logit is the product of a normalised row, of length sqrt(D), and an embedding."""
    relative = 4 * 2 * CONFIG.num_layers * (4 + CONFIG.hidden**0.5) * 2.0**-24
    return relative * CONFIG.hidden**0.5 * model().embedding.norm(dim=-1).max().item()


@pytest.mark.parametrize(("plan", "scheme", "prefill_length", "dealt"), CASES)
def test_ranks_generate_what_one_device_does(ran, plan, scheme, prefill_length, dealt):
    expected = one_device(prefill_length)
    for rank, part in enumerate(ran):
        mine = share(rank, dealt)
        actual = {name: part[f"{plan}/{scheme}/{prefill_length}/{dealt}/{name}"] for name in expected}
        np.testing.assert_array_equal(actual["tokens"], expected["tokens"][mine])
        for name in ("prompt_logits", "logits"):
            np.testing.assert_allclose(actual[name], expected[name][mine], rtol=0, atol=tolerance())
        for number in range(1 + STEPS):
            ids = expected[f"ids/{number}"].reshape(CONFIG.num_layers, 8, -1, CONFIG.top_k)[:, mine]
            np.testing.assert_array_equal(actual[f"ids/{number}"], ids.reshape(CONFIG.num_layers, -1, CONFIG.top_k))


def test_two_experts_exchanged_would_show():
    wrong = copy.deepcopy(model())
    with torch.no_grad():
        wrong.layers[1].experts.gate[[0, 1]] = wrong.layers[1].experts.gate[[1, 0]]
    expected, actual = one_device(17), generated(wrong, prompts(17))
    assert np.abs(actual["prompt_logits"] - expected["prompt_logits"]).max() > 100 * tolerance()
    assert (actual["tokens"] != expected["tokens"]).any()


def test_generating_with_a_cache_is_reading_all_again_for_every_token():
    tokens = prompts(17)
    with torch.no_grad():
        for _ in range(STEPS):
            tokens = torch.cat([tokens, model()(tokens).logits[:, -1:].argmax(-1)], dim=1)
    np.testing.assert_array_equal(one_device(17)["tokens"], tokens[:, 17:])
    assert len(np.unique(tokens[:, 17:])) > 20  # not one token again and again


@pytest.mark.parametrize("plan", PLANS)
def test_a_rank_holds_the_experts_of_its_slots_and_the_dense_parts_alone(ran, plan):
    experts = [p.numel() for name, p in model().named_parameters() if ".experts." in name]
    for rank, part in enumerate(ran):
        np.testing.assert_array_equal(part[f"{plan}/held"], plan_of(plan).placement.slots_used[:, rank])
        assert part[f"{plan}/dense"] == sum(p.numel() for p in model().parameters()) - sum(experts)


def test_plans_with_replicas_are_among_those_run():
    assert plan_of("linear").placement.num_copies.max() == 1
    assert plan_of("eplb").placement.num_copies.max() > 1 and plan_of("grace").placement.num_copies.max() > 1


def test_every_phase_is_visited_once_a_layer_in_every_pass(ran):
    passes, layers = 1 + STEPS, CONFIG.num_layers
    for part in ran:
        visits = {phase: int(part[f"visits/{phase}"]) for phase in ("dispatch", "experts", "combine", "attention")}
        assert visits["dispatch"] == visits["experts"] == visits["combine"] == passes * layers
        assert visits["attention"] == passes * (layers + 1)  # once more for the logits


def plan_for(model="sample-moe", layer_ids=(0, 1), num_experts=16, num_ranks=4):
    ranks = np.arange(num_experts)[None].repeat(len(layer_ids), 0) % num_ranks
    return Plan(model, layer_ids, (num_ranks,), Placement.from_rank_of_expert(ranks, num_ranks), Routing("primary"))


def test_a_plan_for_something_else_is_refused_in_one_line():
    check_plan(plan_for(), CONFIG, 4)
    for plan, message in (
        (plan_for(model="OLMoE-1B-7B"), "plan is for model OLMoE-1B-7B, but the model run is sample-moe"),
        (
            plan_for(layer_ids=(1, 2)),
            r"plan has 16 experts in layers \[1, 2\], but the model has 16 experts in layers \[0, 1\]",
        ),
        (plan_for(num_experts=8), "plan has 8 experts"),
        (plan_for(num_ranks=8), "plan is for 8 ranks, but 4 processes run: start 8 processes"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            check_plan(plan, CONFIG, 4)
        assert "\n" not in str(refused.value)


def test_a_file_that_is_no_sample_model_is_refused_in_one_line(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist: train it with python -m runtime.sample"):
        Engine.of_plan(plan_for(), tmp_path / "none", "flat")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="other: format must be grace-sample-model version 1, got None"):
        Engine.of_plan(plan_for(), tmp_path / "other", "flat")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut: truncated, or no safetensors file"):
        Engine.of_plan(plan_for(), tmp_path / "cut", "flat")
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in list(file.keys()) if name != "norm.weight"}
        save_file(weights, tmp_path / "less", metadata=file.metadata())
        save_file({**weights, "norm.weight": torch.ones(3)}, tmp_path / "wide", metadata=file.metadata())
    for name in ("less", "wide"):
        with pytest.raises(
            ValueError, match=f"{name}: weights do not fit its own config .*norm.weight.*train"
        ) as refused:
            Engine.of_plan(plan_for(), tmp_path / name, "flat")
        assert "\n" not in str(refused.value)
