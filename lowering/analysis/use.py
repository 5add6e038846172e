"""What a program asks of each kind of unit, from its tile ops: the numerator of utilisation, no bound."""

from __future__ import annotations

from lpu_jax.lowering.tile_ir import MatMulInput, PermuteOp, SxmUnit, TileGraph, TileOp, TransposeOp


def resource_use(tiles: TileGraph) -> dict[str, int]:
    """Cycles of work by resource, shared evenly among the units of a kind.

    mxm: plane cycles / planes; weight_load: weight vectors / (streams per load x planes); alu: ALU cycles / ALUs;
    permuter: byte vectors / 2; stream: byte vectors read for the VXM, the MXM and the SXM / streams.
    """
    chip = tiles.chip
    planes = 2 * chip.num_planes
    use = {"mxm": 0, "weight_load": 0, "alu": 0, "permuter": 0, "stream": 0}
    for block in tiles.blocks:
        for op in block.ops:
            for name, amount in _op_use(tiles, op).items():
                use[name] += amount * block.num_iterations
    return {
        "mxm": use["mxm"] // planes,
        "weight_load": use["weight_load"] // (chip.num_streams_per_load * planes),
        "alu": use["alu"] // chip.num_alus,
        "permuter": use["permuter"] // 2,
        "stream": use["stream"] // (2 * 2 * chip.num_streams_per_direction),
    }


def _op_use(tiles: TileGraph, op: TileOp) -> dict[str, int]:
    chip = tiles.chip
    if isinstance(op, TransposeOp):
        return {"stream": 2 * len(op.targets) * op.format.num_bytes}
    if isinstance(op, PermuteOp):
        vectors = len(op.maps) * op.format.num_bytes
        if op.unit is SxmUnit.DISTRIBUTOR:
            return {"stream": 2 * vectors + len(op.maps)}
        return {"permuter": vectors, "stream": 4 * vectors}
    use = {"mxm": 0, "weight_load": 0, "stream": 0}
    use["alu"] = sum(chip.alu_slots(step.function) for step in op.steps) * op.num_vectors
    for item in op.inputs:
        if isinstance(item, MatMulInput):
            for weight in item.weights:
                per_vector = chip.cycles_per_vector(
                    weight.num_rows, item.lhs_format.significand_bytes, item.rhs_format.significand_bytes
                )
                shared = chip.planes_per_tile(item.rhs_format.num_bytes)
                use["mxm"] += per_vector * op.num_vectors * shared
                use["weight_load"] += item.num_vectors(weight) * item.rhs_format.num_bytes
            lhs = len(item.weights) * item.lhs_format.num_bytes * op.num_vectors
            use["stream"] += lhs + use["weight_load"] + item.format.num_bytes * op.num_vectors
        else:
            use["stream"] += item.format.num_bytes * op.num_vectors
    for output in op.outputs:
        use["stream"] += output.format.num_bytes * op.num_vectors
    return use
