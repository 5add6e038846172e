"""verify_tiles refuses what an SXM cannot do."""

import dataclasses

import pytest
from helpers import Sketch

from lpu_jax.chips import groqchip1
from lpu_jax.lowering.analysis.tile_checks import verify_tiles
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.printing import tiles_text
from lpu_jax.lowering.tile_ir import PermuteOp, SxmUnit, TransposeOp
from lpu_jax.runtime.chip import Hemisphere
from lpu_jax.runtime.errors import ScheduleError
from lpu_jax.runtime.ops import Transpose


def changed(kind, **fields):
    """A transposition with fields of its first op of a kind replaced; a value may be a function of the old one."""
    s = Sketch()
    tiles = tile(s.build((s.op(Transpose((1, 0)), s.random((48, 64)), shape=(64, 48)),)), groqchip1)
    verify_tiles(tiles)
    (block,) = tiles.blocks
    ops = list(block.ops)
    index = next(i for i, op in enumerate(ops) if isinstance(op, kind))
    new = {name: value(getattr(ops[index], name)) for name, value in fields.items()}
    ops[index] = dataclasses.replace(ops[index], **new)
    return dataclasses.replace(tiles, blocks=(dataclasses.replace(block, ops=tuple(ops)),))


def other_unit(unit):
    return SxmUnit.DISTRIBUTOR if unit is SxmUnit.PERMUTER else SxmUnit.PERMUTER


@pytest.mark.parametrize("kind", [PermuteOp, TransposeOp])
def test_an_sxm_reaches_one_hemisphere(kind):
    with pytest.raises(ScheduleError, match="meets the other hemisphere"):
        verify_tiles(changed(kind, hemisphere=lambda side: Hemisphere(1 - side)))


def test_maps_are_as_wide_as_their_unit_reads_them():
    with pytest.raises(ScheduleError, match="reads maps of"):
        verify_tiles(changed(PermuteOp, unit=other_unit))


@pytest.mark.parametrize("broken", [lambda refs: refs[::-1], lambda refs: refs[:8], lambda refs: refs[1:17]])
def test_a_transposer_takes_aligned_groups_in_order(broken):
    with pytest.raises(ScheduleError, match="aligned groups"):
        verify_tiles(changed(TransposeOp, source_refs=broken, targets=broken))


def test_every_op_prints():
    s = Sketch()
    tiles = tile(s.build((s.op(Transpose((1, 0)), s.random((48, 64)), shape=(64, 48)),)), groqchip1)
    text = tiles_text(tiles)
    assert "transpose INT32" in text
    assert "permute" in text
    assert "skewed" in text
