"""A GPU and its speeds by type of weights."""

import pytest

from grace_opt.gpu import GPU

FP8 = {"flops_per_s": 20.0, "least_s": 0.5}
DEVICE = GPU("toy", flops_per_s=10, memory_bytes_per_s=4, memory_bytes=100, launch_s=0.1, weight_types={"fp8": FP8})


def test_speeds_of_a_type_of_weights_replace_only_what_they_name():
    fp8 = DEVICE.for_weights("fp8")
    assert (fp8.flops_per_s, fp8.least_s, fp8.launch_s, fp8.memory_bytes_per_s) == (20, 0.5, 0.1, 4)


def test_an_unknown_type_of_weights_has_the_speeds_of_bf16():
    assert DEVICE.for_weights("mxfp4").flops_per_s == 10


@pytest.mark.parametrize(
    ("speeds", "message"),
    [
        ({"speed": 1.0}, "weight_types.fp8.speed is none of flops_per_s, "),
        ({"flops_per_s": -1.0}, "flops_per_s must be a positive finite number, got -1"),
        ({"slot_s": -1.0}, "slot_s must be a time in seconds, got -1"),
        ({"row_s": -1.0}, "row_s must be a time in seconds, got -1"),
    ],
)
def test_speeds_that_cannot_be_are_refused(speeds: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        GPU("toy", 10, 4, 100, weight_types={"fp8": speeds})


def test_dense_products_have_the_speeds_of_experts_unless_others_are_given():
    assert DEVICE.for_dense().flops_per_s == 10
    faster = GPU("toy", 10, 4, 100, dense_flops_per_s=30, dense_memory_bytes_per_s=5).for_dense()
    assert (faster.flops_per_s, faster.memory_bytes_per_s) == (30, 5)
