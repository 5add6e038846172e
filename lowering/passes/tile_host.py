"""Where the chip waits for the host: calls of the host, and loops that the host starts turn by turn."""

from __future__ import annotations

from lpu_jax.lowering.host_plan import HostLoop, HostMove, HostStep
from lpu_jax.lowering.passes.tile import Tiler
from lpu_jax.lowering.passes.tile_lazy import default_splat
from lpu_jax.lowering.passes.tile_scan import close_body, enter_carry
from lpu_jax.lowering.passes.tile_storage import Demand
from lpu_jax.lowering.tile_ir import Binding
from lpu_jax.runtime.ops import Equation, HostCall, While


def tile_host_call(tiler: Tiler, equation: Equation, op: HostCall) -> None:
    """Ends the run of blocks, has the host compute, and gives the results homes that the host fills."""
    avals = tiler.graph.avals
    operands: list[Binding | int] = []
    for value in equation.operands:
        assert isinstance(value, int)
        is_slot = avals[value].is_on_host
        operands.append(tiler.slot(value) if is_slot else Binding(value, tiler.view(value), 1, avals[value].dtype))
    tiler.end_run()
    results: list[tuple[Binding, ...] | int] = []
    for value in equation.results:
        aval = avals[value]
        if aval.is_on_host:
            results.append(tiler.new_slot(value))
            continue
        demand = tiler.demand.get(value, Demand())
        views = tiler.builder.allocate(aval, default_splat(aval.shape), demand, resident=True, name=f"%{value}")
        tiler.views[value] = views
        results.append(tuple(Binding(value, view, 1, aval.dtype) for view in views))
    tiler.plan.append(HostStep(op.fun, op.name, equation.source, tuple(operands), tuple(results)))


def tile_while(tiler: Tiler, equation: Equation, loop: While) -> None:
    """Tiles the body into blocks of its own; its carry has homes that are filled before the loop."""
    avals = tiler.graph.avals
    body = Tiler(tiler.builder, loop.body)
    body.blocks = tiler.blocks
    operands = [v for v in equation.operands if isinstance(v, int)]
    inputs = loop.body.inputs
    for value, outer in zip(inputs[: loop.num_consts], operands, strict=False):
        if avals[outer].is_on_host:
            body.slots[value] = tiler.slot(outer)
        else:
            body.views[value] = tiler.all_views(outer)
    moves = []
    carry = list(zip(inputs[loop.num_consts :], operands[loop.num_consts :], strict=True))
    for value, outer in carry:
        if avals[outer].is_on_host:
            moves.append((tiler.slot(outer), body.new_slot(value)))
        else:
            body.views[value] = enter_carry(tiler, body, value, outer)
    tiler.end_run()
    body.run_start = tiler.run_start
    tiler.plan += [HostMove(tuple(moves))] if moves else []
    body.run()
    _close_turn(body, loop)
    flag = Binding(carry[0][0], body.views[carry[0][0]][0], 1, "bool")
    stage = HostLoop(flag, tuple(body.plan), loop.name, equation.source, loop.max_trip_count)
    tiler.plan.append(stage)
    tiler.run_start = body.run_start
    for result, (value, _) in zip(equation.results, carry, strict=True):
        if avals[result].is_on_host:
            tiler.slots[result] = body.slots[value]
        else:
            tiler.views[result] = body.views[value]


def _close_turn(body: Tiler, loop: While) -> None:
    """Writes the carry to its homes, all reads come before."""
    homes = loop.body.inputs[loop.num_consts :]
    pairs = list(zip(loop.body.outputs, homes, strict=True))
    in_sram = [(v, home) for v, home in pairs if not loop.body.avals[v].is_on_host]
    close_body(body, tuple(v for v, _ in in_sram), [home for _, home in in_sram], len(in_sram))
    body.end_run()
    moves = tuple((body.slot(v), body.slots[home]) for v, home in pairs if loop.body.avals[v].is_on_host)
    body.plan += [HostMove(moves)] if moves else []
