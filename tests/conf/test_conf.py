"""Every option of every group of `conf/` builds."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from grace_opt.__main__ import main
from grace_opt.configuration import commands, groups, read_configuration, run
from grace_opt.model import MoEModel
from grace_opt.topology import Topology

# An experiment is a whole command; each has a test of its own in tests/analysis.
OPTIONS = [(group, choice) for group, choices in groups().items() for choice in choices if group != "experiment"]
TOPOLOGIES = (
    "a100_25gbe_2x2",
    "a100_25gbe_2x4",
    "h100_ib_1x8",
    "h100_ib_2x8",
    "h100_ib_4x8",
    "h100_ib_8x8",
    "gb200_nvl72",
    "h200_ib_2x8",
    "b200_ib_2x8",
    "h800_ib_4x8",
    "h20_ib_2x8",
    "l40s_pcie_1x8",
    "h100_efa_rails_2x8",
    "h100_leaves_4x8",
    "h100_slow_node_4x8",
    "h100_a100_2x8",
    "pcie_100gbe_2x4",
    "custom",
)
MODELS = (
    "olmoe_1b_7b",
    "deepseek_v2_lite",
    "qwen3_30b_a3b",
    "gpt_oss_20b",
    "mixtral_8x7b",
    "deepseek_v3",
    "qwen3_235b_a22b",
    "sample",
)
BUILT_WITH_ARGUMENTS = {
    ("split", "domain"): ["split.fit_domains=[a]"],
    ("trace", "synthetic"): ["trace.num_tokens=2000", "model=olmoe_1b_7b", "trace.like={recording}"],
}


@pytest.mark.parametrize(("group", "choice"), OPTIONS)
def test_every_option_of_every_group_builds(group, choice, short_sample):
    arguments = [text.format(recording=short_sample) for text in BUILT_WITH_ARGUMENTS.get((group, choice), [])]
    command = {"planner": "plan", "measured": "validate", "source": "import"}.get(group, "compare")
    place = {"gpu": "gpu@topology.gpu"}.get(group, group)
    config = read_configuration(command, [f"{place}={choice}", *arguments])
    instantiate(OmegaConf.select(config, place.partition("@")[2] or group), _convert_="all")


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_topology_presets_have_the_ranks_their_names_say(name):
    topology = instantiate(read_configuration("plan", [f"topology={name}"]).topology)
    assert isinstance(topology, Topology)
    if name == "custom":
        assert topology.ranks_per_node == (2, 3)
    elif name == "gb200_nvl72":
        assert topology.ranks_per_node == (72,)
    else:
        nodes, ranks = name.rsplit("_", 1)[1].split("x")
        assert topology.ranks_per_node == (int(ranks),) * int(nodes)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_presets_build(name):
    assert isinstance(instantiate(read_configuration("plan", [f"model={name}"]).model), MoEModel)


@pytest.mark.parametrize(
    ("name", "parameters", "dense_width", "layers", "groups"),
    [
        ("olmoe_1b_7b", 6.92e9, 2, range(16), 1),
        ("deepseek_v2_lite", 15.7e9, 2, range(1, 27), 1),
        ("qwen3_30b_a3b", 30.5e9, 2, range(48), 1),
        ("gpt_oss_20b", 20.9e9, 2, range(24), 1),
        ("mixtral_8x7b", 46.7e9, 2, range(32), 1),
        ("deepseek_v3", 671e9, 1, range(3, 61), 8),
        ("qwen3_235b_a22b", 235.1e9, 2, range(94), 1),
    ],
)
def test_a_model_preset_has_the_published_number_of_parameters(name, parameters, dense_width, layers, groups):
    model = instantiate(read_configuration("plan", [f"model={name}"]).model)
    routed = model.num_layers * model.num_experts * 3 * model.hidden_size * model.ffn_size
    assert routed + model.dense_bytes / dense_width == pytest.approx(parameters, rel=0.002)
    assert (model.layer_ids, model.num_expert_groups) == (layers, groups)


def test_there_is_one_root_file_per_command():
    assert set(commands()) == {
        "compare", "import", "plan", "simulate", "calibrate", "validate", "generate", "accuracy", "study", "front",
        "export", "record", "report", "advise",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["calibrate", "validate", "generate plan=x"])
def test_a_command_for_several_ranks_says_so_when_run_alone(command):
    pytest.importorskip("torch")
    name, *overrides = command.split()
    config = read_configuration(name, overrides)
    with pytest.raises(ValueError, match="start it with torchrun --nproc-per-node RANKS -m runtime COMMAND"):
        run(config)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("slot_per_rank=3", "unknown option 'slot_per_rank'; did you mean slots_per_rank?"),
        ("topologi=custom", "unknown option 'topologi'; did you mean topology?"),
        ("topology=a100_25gbe_2x3", "topology=a100_25gbe_2x3 does not exist; did you mean a100_25gbe_2x"),
        ("topology.num_node=3", "did you mean topology.num_nodes?"),
        ("+nonsense=1", "unknown option 'nonsense'"),
        ("slots_per_rank", "expected key=value"),
        ("slots_per_rank=many", "slots_per_rank must be int | Sequence[int] | None, got 'many'"),
        ("slots_per_rank=[3,x]", "slots_per_rank must be int | Sequence[int] | None"),
        ("topology=null", "topology=None does not exist; "),
        ("topology.num_nodes=two", "topology.num_nodes must be int, got 'two'"),
        ("planner.seed=1.5", "planner.seed must be int, got 1.5"),
        ("+planner.speed=3", "planner.speed is no option of grace_opt.planners.joint.Joint"),
        (
            "scheme=fast",
            "scheme must be one of pairs, flat, hierarchical, hierarchical_padded, ",
        ),
        ("split=domain", "split.fit_domains must be given"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_way_out(override, expected):
    with pytest.raises(ValueError, match=".") as error:
        run(read_configuration("plan", [override]))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_with_its_options(command, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: grace-opt {command}" in said and "\nOptions:\n  " in said


def test_a_value_nothing_uses_is_warned_of():
    with pytest.warns(UserWarning, match="seed=3 has no effect"):
        read_configuration("plan", ["planner=linear", "seed=3"])


def test_a_plain_value_may_have_the_name_of_a_group_of_other_commands():
    config = read_configuration("record", ["model=owner/name", "text=a.txt", "output=b.safetensors"])
    assert (config.model, config.text) == ("owner/name", "a.txt")
    with pytest.raises(ValueError, match="unknown option 'topology'"):
        read_configuration("record", ["topology=custom"])


def test_a_command_takes_only_its_own_parts():
    with pytest.raises(ValueError, match="unknown option 'planner'"):
        read_configuration("simulate", ["planner=linear"])
    with pytest.raises(ValueError, match="unknown option 'planner'"):
        read_configuration("compare", ["planner=linear"])
