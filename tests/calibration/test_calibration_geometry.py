"""Published figures that are geometry alone: peak rates, SRAM size, bandwidths of GroqChip 1."""

import pytest

from lpu_jax.runtime.chip import GROQCHIP1


def test_peak_int8_is_737_tops():
    """737.3 TOPS at 900 MHz (row 1): 4 planes of 320 x 320, two operations each."""
    assert GROQCHIP1.macs_per_cycle_int8 == 4 * 320 * 320
    assert 2 * GROQCHIP1.macs_per_cycle_int8 * GROQCHIP1.clock_hz / 1e12 == pytest.approx(737.28)


def test_peak_fp16_is_184_tflops():
    """184.3 TFLOPS (row 1): two pairs of planes, 160 x 320 each in one cycle; 320 rows take two."""
    assert GROQCHIP1.cycles_per_vector(160, 2, 2) == 1
    assert GROQCHIP1.cycles_per_vector(161, 2, 2) == 2
    assert GROQCHIP1.cycles_per_vector(320, 2, 2) == 2
    pairs = 2 * GROQCHIP1.num_planes // GROQCHIP1.planes_per_tile(2)
    assert 2 * pairs * 160 * GROQCHIP1.num_lanes * GROQCHIP1.clock_hz / 1e12 == pytest.approx(184.32)


def test_sram_is_220_mib():
    """230,686,720 bytes (row 2) with the nine slices that the system reserves, 22.5 MiB."""
    assert GROQCHIP1.sram_bytes == 230_686_720
    assert GROQCHIP1.sram_bytes - GROQCHIP1.usable_sram_bytes == 9 * 2_621_440


def test_bandwidths():
    """20,480 stream bytes and 56,320 MEM bytes per cycle (row 3)."""
    assert GROQCHIP1.stream_bytes_per_cycle == 20_480
    assert GROQCHIP1.mem_bytes_per_cycle == 56_320
