import dataclasses

import pytest

from lpu_jax.runtime.chip import GROQCHIP1, PRESETS, TINY, ChipSpec
from lpu_jax.runtime.chip_limits import LIMITS, check_chip, limit_of

INTEGERS = [field.name for field in dataclasses.fields(ChipSpec) if field.type == "int"]


@pytest.mark.parametrize("chip", PRESETS.values(), ids=str)
def test_presets_are_chips(chip):
    check_chip(chip)


@pytest.mark.parametrize("name", INTEGERS)
def test_every_integer_has_a_lowest_value_and_the_error_names_it(name):
    limit = limit_of(name)
    with pytest.raises(ValueError, match=rf"ChipSpec.{name}={limit.low - 1}: allowed are .*{limit.low}"):
        dataclasses.replace(GROQCHIP1, **{name: limit.low - 1})
    for wrong in (1.5, True, "2", None):
        with pytest.raises(ValueError, match=f"ChipSpec.{name}={wrong!r}: allowed are"):
            dataclasses.replace(GROQCHIP1, **{name: wrong})


def test_limits_are_about_fields_that_exist():
    assert set(LIMITS) <= set(INTEGERS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_lanes_per_superlane": 24}, "num_lanes_per_superlane=24: allowed are integers from 16 on in steps of 16"),
        ({"num_streams_per_transpose": 32}, "num_streams_per_transpose=32: allowed are 16"),
        ({"accumulation": "float32"}, "accumulation='float32' is unknown; chips have exact, tile"),
        ({"pcie_bytes_per_second": 0.0}, "pcie_bytes_per_second=0.0: allowed are numbers of more than 0"),
        ({"pcie_latency_seconds": float("nan")}, "pcie_latency_seconds=nan: allowed are numbers of 0 and more"),
        ({"reserved_slices_west": [1]}, r"reserved_slices_west=\[1\]: allowed are tuples"),
        ({"num_mxm_rows": 160}, "num_mxm_rows=160 of chip 'groqchip1': at least 320"),
        ({"num_planes": 4}, "num_mxm_queues_per_hemisphere=6 .* at least 12"),
        ({"num_distributors": 20}, "num_sxm_queues_per_hemisphere=14 .* at least 23"),
        ({"num_streams_per_load": 64}, "num_streams_per_direction=32 .* at least 64"),
    ],
)
def test_what_is_no_chip_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GROQCHIP1, **fields)


def test_a_free_pcie_is_a_chip():
    assert dataclasses.replace(TINY, pcie_latency_seconds=0).pcie_latency_seconds == 0
