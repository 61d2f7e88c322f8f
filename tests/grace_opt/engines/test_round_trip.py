"""What is exported and read back is the same placement, for every engine; every damaged file is refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.engines import omni, sglang, tensorrt_llm, vllm, vllm_ascend
from grace_opt.engines.engine import Engine, Options
from grace_opt.engines.export import ENGINES
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing

FOLDER = Path("out")
READERS: dict[str, Callable[[dict[str, bytes], Plan], Placement]] = {
    "sglang": lambda files, plan: sglang.read_placement(files[sglang.FILE], plan.num_ranks, plan.layer_ids),
    "tensorrt_llm": lambda files, plan: tensorrt_llm.read_placement(files[tensorrt_llm.FILE], plan.num_ranks)[1],
    "vllm": lambda files, plan: vllm.read_placement(files[vllm.RECORD_FILE], plan.num_ranks),
    "vllm_ascend": lambda files, plan: vllm_ascend.read_placement(files[vllm_ascend.FILE]),
    "omni": lambda files, plan: omni.read_placement(files[omni.FILE]),
}
FILES = {
    "sglang": sglang.FILE, "tensorrt_llm": tensorrt_llm.FILE, "vllm": vllm.RECORD_FILE,
    "vllm_ascend": vllm_ascend.FILE, "omni": omni.FILE,
}  # fmt: skip


def exported(engine: Engine, plan: Plan) -> dict[str, bytes]:
    return dict(engine.files(plan, Options(), FOLDER))


def test_every_engine_is_read_back_here():
    assert set(READERS) == set(ENGINES) == set(FILES)


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "omni"])
@given(data=st.data())
def test_export_then_import_gives_the_same_placement(even_plans, name, data):
    plan = data.draw(even_plans(once=ENGINES[name].EXPERT_ONCE_PER_RANK))
    read = READERS[name](exported(ENGINES[name], plan), plan)
    assert np.array_equal(read.slots, plan.placement.slots)
    assert read.num_experts == plan.num_experts


@given(data=st.data())
def test_omni_keeps_who_holds_what_but_not_the_order_on_a_rank(even_plans, data):
    plan = data.draw(even_plans(once=True))
    read = READERS["omni"](exported(omni, plan), plan)
    assert np.array_equal(read.slots, np.sort(plan.placement.slots, axis=2))


@given(data=st.data())
def test_tensorrt_llm_and_sglang_keep_absolute_layers(even_plans, data):
    plan = data.draw(even_plans())
    layer_ids, _ = tensorrt_llm.read_placement(exported(tensorrt_llm, plan)[tensorrt_llm.FILE], plan.num_ranks)
    assert layer_ids == plan.layer_ids
    absent = max(plan.layer_ids) + 1
    with pytest.raises(ValueError, match="has layers 0.."):
        sglang.read_placement(exported(sglang, plan)[sglang.FILE], plan.num_ranks, [absent])


@given(data=st.data())
def test_vllms_second_file_says_the_same_as_the_first(even_plans, data):
    plan = data.draw(even_plans())
    files = exported(vllm, plan)
    one, other = (vllm.read_placement(files[name], plan.num_ranks) for name in (vllm.RECORD_FILE, vllm.MAP_FILE))
    assert np.array_equal(one.slots, other.slots)


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_refused_in_one_line_or_still_a_placement(even_plans, name, data):
    plan = data.draw(even_plans(once=True))
    files: dict[str, Any] = exported(ENGINES[name], plan)
    content = bytearray(files[FILES[name]])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(1, 8))] = data.draw(st.binary(max_size=4))
        if not content:
            break
    files[FILES[name]] = bytes(content)
    try:
        read = READERS[name](files, plan)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and FILES[name] in message
    else:
        assert isinstance(read, Placement)


@pytest.mark.parametrize("name", ENGINES)
@given(content=st.binary(max_size=200))
def test_anything_else_is_refused(name, content):
    plan = Plan("toy", (0,), (1,), Placement.from_lists([[[0]]], 1), Routing("uniform"))
    with pytest.raises(ValueError, match=FILES[name]):
        READERS[name]({FILES[name]: content}, plan)
