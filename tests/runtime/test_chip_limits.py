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
        ({"num_lanes_per_superlane": 32}, "num_lanes_per_superlane=32: allowed are 16"),
        ({"vxm_slots": (("exp", 0),)}, r"vxm_slots=.*: allowed are tuples of pairs \(function, ALUs"),
        ({"vxm_slots": [("exp", 1)]}, "vxm_slots=.*: allowed are tuples of pairs"),
        ({"vxm_entry_cycles": 8}, "vxm_pass_cycles=8 .* at least 9"),
        ({"num_streams_per_load": 12}, "num_streams_per_load=12 .* divisors of its 320 lanes"),
        (
            {"num_slices": 17},
            r"num_slices=17 with reserved_slices_west=.* leaves no slice in the last column",
        ),
        ({"num_slices": 12}, "num_slices=12 with reserved_slices_west=.* leaves 12 slices: at least 16"),
        ({"reserved_slices_east": tuple(range(30))}, "reserved_slices_east=.* leaves 14 slices: at least 16"),
        ({"reserved_slices_east": (0, 1, 2, 3)}, "leaves no slice in the first column"),
        ({"reserved_slices_west": (40, 41, 42, 43)}, "leaves no slice in the last column"),
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
