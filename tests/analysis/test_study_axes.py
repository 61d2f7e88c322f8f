"""From arguments to cells."""

import warnings

import pytest

from analysis.study_axes import read_sweep
from analysis.study_cell import Cell
from grace_opt.configuration import CONF_DIR, groups, read_configuration

STUDIES = ("redundancy", "bandwidth", "ep_size", "domain_shift", "sensitivity", "heterogeneous")


def names(sweep):
    return [tuple(values.values()) for values in sweep.values]


def test_cells_are_all_combinations_and_the_last_axis_is_fastest():
    sweep = read_sweep("study", ["planner=linear,eplb", "slots_per_rank=20", "topology.inter_bytes_per_s=1e9,2e9"])
    assert [axis.name for axis in sweep.swept] == ["cell.planner", "cell.topology.inter_bytes_per_s"]
    assert names(sweep) == [("linear", 1e9), ("linear", 2e9), ("eplb", 1e9), ("eplb", 2e9)]
    assert [cell.content["topology"]["inter_bytes_per_s"] for cell in sweep.cells] == [1e9, 2e9, 1e9, 2e9]
    assert {cell.content["slots_per_rank"] for cell in sweep.cells} == {20}


def test_without_a_list_of_values_there_is_one_cell():
    sweep = read_sweep("study", ["planner=linear"])
    assert (len(sweep.cells), sweep.swept) == (1, ())


@pytest.mark.parametrize(
    "overrides",
    [
        ["planner=eplb,grace", "planner.routing=tar", "scheme=flat,pairs"],
        ["topology=h100_ib_1x8,h100_ib_2x8", "workload=prefill,decode"],
        ["topology.num_nodes=1,2", "topology.ranks_per_node=2,4", "slots_per_rank=32,[32,32]"],
        ["workload.tokens_per_rank=64,null", "scaled=null,topology.gpu.flops_per_s*0.5"],
        ["split=domain", "split.fit_domains=[gui],[modules,packages]"],
    ],
)
def test_a_cell_is_what_hydra_composes(overrides):
    """Plain values are set in a configuration that was composed before; that must make no difference."""
    if "slots_per_rank=32,[32,32]" in overrides:
        overrides = [*overrides[:2], "slots_per_rank=32"]
    sweep = read_sweep("study", overrides)
    combinations = sweep._combinations()
    for cell, which in zip(sweep.cells, combinations, strict=True):
        arguments = [f"{axis.key}={axis.values[i]}" for axis, i in zip(sweep.axes, which, strict=True)]
        assert Cell.from_config(read_configuration("study", arguments)).digest == cell.digest
    assert len({cell.digest for cell in sweep.cells}) == len(sweep.cells)


@pytest.mark.parametrize("study", STUDIES)
def test_a_ready_study_spans_cells(study):
    sweep = read_sweep("study", [f"experiment={study}"])
    assert len(sweep.cells) >= 12
    assert sweep.config.output == f"outputs/{study}"


def test_what_the_user_gives_replaces_an_axis_of_a_ready_study():
    sweep = read_sweep("study", ["experiment=bandwidth", "topology.inter_bytes_per_s=3e9,5e9", "planner=linear"])
    assert {axis.name: axis.values for axis in sweep.swept} == {
        "cell.topology.inter_bytes_per_s": ("3000000000.0", "5000000000.0"),
        "cell.scheme": ("pairs", "flat", "hierarchical"),
    }


def test_only_the_smallest_box_around_the_wanted_cells_is_run():
    sweep = read_sweep("study", ["hydra/launcher=basic", "planner=linear,grace", "scheme=flat,pairs", "seed=1,2,3"])
    wanted = [values["cell.seed"] == 3 for values in sweep.values]
    assert sweep.arguments(wanted) == ["hydra/launcher=basic", "seed=3", "scheme=flat,pairs", "planner=linear,grace"]


def test_an_axis_that_no_cell_uses_is_warned_of_and_one_that_some_use_is_not():
    with pytest.warns(UserWarning, match="seed=1,2 has no effect: all cells along it are the same"):
        read_sweep("study", ["planner=linear", "seed=1,2"])
    with pytest.warns(UserWarning, match="seed=3 has no effect"):
        read_sweep("study", ["planner=linear,eplb", "seed=3"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_sweep("study", ["planner=linear,grace", "seed=1,2"])
        read_sweep("study", ["planner=linear,grace", "seed=3"])


def test_files_are_shown_by_their_names(tmp_path):
    example = CONF_DIR / "clusters" / "unequal_pair.yaml"
    (tmp_path / "other.yaml").write_text(example.read_text().replace("name: unequal_pair", "name: other"))
    paths = [example, tmp_path / "other.yaml"]
    sweep = read_sweep("study", ["topology=custom", f"topology.path={','.join(map(str, paths))}"])
    assert names(sweep) == [("unequal_pair.yaml",), ("other.yaml",)]
    assert [cell.content["topology"]["path"] for cell in sweep.cells] == [str(path) for path in paths]


def test_scaled_multiplies_one_number():
    cells = read_sweep("study", ["scaled=null,topology.inter_bytes_per_s*0.5"]).cells
    assert [cell.content["topology"]["inter_bytes_per_s"] for cell in cells] == [2.99e9, 1.495e9]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["plannner=linear,eplb"], "unknown option 'plannner'; did you mean planner?"),
        (["planner=linear,epbl"], "planner=epbl does not exist; did you mean eplb?"),
        (["topology.inter_bytes_per=1e9,2e9"], "did you mean topology.inter_bytes_per_s?"),
        (["topology.num_nodes=2,three"], "topology.num_nodes must be int, got 'three'"),
        (["slots_per_rank=16,many"], "slots_per_rank must be int"),
        (["experiment=bandwith"], "experiment=bandwith does not exist; did you mean bandwidth?"),
        (["experiment=bandwidth,redundancy"], "a study has one experiment"),
        (["output=a,b"], "a study has one output"),
        (["scheme=flat,pairs", "planner=linear,eplb", "planner.seed=1"], "planner.seed"),
        (["slots_per_rank=interval(1,2)"], "key=a,b,c"),
        (["scheme"], "expected key=value"),
        (["scaled=topology.inter*2"], "scaled must be the name of a number"),
        (["scaled=topology.inter_bytes_per_s"], "scaled must be the name of a number"),
        (["scaled=topology.inter_bytes_per_s*-1"], "scaled must be the name of a number"),
        (["hydra/launcher=slurm"], "Could not find 'hydra/launcher/slurm'"),
        (["hydra.launcher.jobs=2"], "hydra.launcher.jobs"),
        (["~model"], "model must be given, but it was left out"),
        (["split=domain"], "split.fit_domains must be given"),
    ],
)
def test_a_wrong_argument_is_one_line_before_anything_runs(overrides, expected):
    with pytest.raises(ValueError, match=".") as error:
        read_sweep("study", overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_every_ready_study_is_tested():
    commands = {"grace_ablation", "paper"}
    assert set(groups()["experiment"]) - commands == set(STUDIES)
