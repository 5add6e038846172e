"""The schedule: nothing is booked twice, nothing is read before it is there, independent work overlaps."""

import dataclasses

import pytest
from families import FAMILIES, build
from helpers import Sketch, assert_agrees

from lpu_jax.chips import groqchip1, tiny
from lpu_jax.lowering.passes import schedule as passes
from lpu_jax.lowering.passes.place import place
from lpu_jax.lowering.passes.schedule import schedule
from lpu_jax.lowering.passes.schedule_checks import verify_schedule
from lpu_jax.lowering.passes.tile import tile
from lpu_jax.lowering.pipeline import compile_graph
from lpu_jax.lowering.tile_ir import MemoryInput
from lpu_jax.runtime.errors import ChipLimitError, ScheduleError
from lpu_jax.runtime.ops import Broadcast


def planned(name, n, chip):
    return schedule(place(tile(build(name, n)[0], chip)))


def accesses(plan, op):
    """(kind, words, cycle) of every vector that an op reads or writes, words by their place in SRAM."""
    storages, places = plan.allocated.tiles.storages, plan.allocated.places
    for kind, items in (("read", op.template.reads), ("write", op.template.writes)):
        for access in items:
            storage, spot = storages[access.storage], places[access.storage]
            width = storage.format.num_bytes
            for vector, cycle in zip(access.vectors.tolist(), access.cycles.tolist(), strict=True):
                for byte in range(width):
                    mem_slice = spot.slices[int(storage.slice_index(vector, byte))]
                    address = spot.base + int(storage.address(vector, byte))
                    # byte planes of a vector lie in several columns; an access is that of one byte
                    yield kind, (storage.hemisphere, mem_slice, address), op.time_zero + cycle


def assert_in_order(plan):
    """Accesses of different ops to one word keep the order of the ops, write latency included."""
    write_cycles = plan.allocated.tiles.chip.mem_write_cycles
    for block in plan.blocks:
        written, read = {}, {}
        for op in block.ops:
            found = list(accesses(plan, op))
            for kind, word, cycle in found:
                if kind == "read":
                    assert cycle >= written.get(word, cycle), f"{word} read in {cycle} before it is written"
                else:
                    assert cycle >= read.get(word, cycle), f"{word} written in {cycle} before it is read"
            for kind, word, cycle in found:
                table, time = (read, cycle) if kind == "read" else (written, cycle + write_cycles)
                table[word] = max(time, table.get(word, time))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_resource_is_booked_twice(name):
    for chip, n in ((tiny, 17), (tiny, 33), (groqchip1, 321)):
        verify_schedule(planned(name, n, chip))


def with_first_op_at(plan, time):
    """The plan with every op of its first block started at one time."""
    block = plan.blocks[0]
    ops = tuple(dataclasses.replace(op, time_zero=time) for op in block.ops)
    return dataclasses.replace(plan, blocks=(dataclasses.replace(block, ops=ops), *plan.blocks[1:]))


def test_verifier_notices_a_double_booking():
    plan = planned("lane_max_min", 17, tiny)
    assert len(plan.blocks[0].ops) > 1
    with pytest.raises(ScheduleError, match="booked twice"):
        verify_schedule(with_first_op_at(plan, 100))


def test_verifier_notices_a_read_before_the_write():
    plan = planned("lane_max_min", 17, tiny)
    block = plan.blocks[0]
    early = dataclasses.replace(block.ops[-1], time_zero=block.ops[-1].time_zero - 10_000)
    block = dataclasses.replace(block, ops=(*block.ops[:-1], early))
    with pytest.raises(ScheduleError, match=r"vector \d+ of storage \d+ is read at -\d+, before cycle"):
        verify_schedule(dataclasses.replace(plan, blocks=(block, *plan.blocks[1:])))


def test_verifier_notices_a_write_to_what_is_not_done_with():
    s = Sketch(seed=2)
    graph = s.build(tuple(s.fn("add", s.random((rows, 16)), s.random((rows, 16))) for rows in (4, 6)))
    plan = schedule(place(tile(graph, tiny)))
    verify_schedule(plan)
    first, second = (op.template.writes[0].storage for op in plan.blocks[0].ops)
    reuses = tuple((first,) if storage == second else () for storage in range(len(plan.allocated.reuses)))
    allocated = dataclasses.replace(plan.allocated, reuses=reuses)
    with pytest.raises(ScheduleError, match=f"storage {second} is written at .* where storage {first} lies until"):
        verify_schedule(dataclasses.replace(plan, allocated=allocated))


@pytest.mark.parametrize("name", FAMILIES)
def test_words_are_read_after_they_are_written(name):
    for chip, n in ((tiny, 17), (groqchip1, 33)):
        assert_in_order(planned(name, n, chip))


def test_order_check_notices_an_early_read():
    plan = planned("matmul_of_a_product", 17, tiny)
    assert_in_order(plan)
    with pytest.raises(AssertionError, match="before it is"):
        assert_in_order(with_first_op_at(plan, 100))


def reductions(count):
    """Independent maxima over lanes, each a chain of rotations that waits for itself most of the time."""
    s = Sketch()
    return s.build(tuple(s.reduce("max", s.random((1, 16))) for _ in range(count)))


def test_independent_work_fills_the_gaps():
    one, two = (compile_graph(reductions(count), tiny) for count in (1, 2))
    start = tiny.barrier_cycles + tiny.skew_cycles
    assert two.cycles - start < 1.5 * (one.cycles - start)


def test_dependent_work_takes_its_latencies():
    s = Sketch()
    x = s.random((1, 16))
    first = s.reduce("max", x)
    again = s.reduce("max", s.fn("sub", x, s.op(Broadcast((0, 1)), first, shape=(1, 16))))
    one, two = compile_graph(reductions(1), tiny), compile_graph(s.build((again,)), tiny)
    start = tiny.barrier_cycles + tiny.skew_cycles
    assert two.cycles - start > 1.8 * (one.cycles - start)


def test_more_orders_shorten_the_schedule_and_nothing_else():
    cycles = {1: 0, 8: 0}
    for name in ("matmul_batched", "scan_of_matmuls", "transpose"):
        graph, arguments = build(name, 33)
        once, often = (compile_graph(graph, tiny, num_orders=count) for count in cycles)
        assert often.cycles <= once.cycles
        cycles = {count: total + c.cycles for (count, total), c in zip(cycles.items(), (once, often), strict=True)}
        outputs, measured = often.simulate(arguments)
        assert measured == often.cycles
        assert [x.tobytes() for x in outputs] == [x.tobytes() for x in once.simulate(arguments)[0]]
        assert compile_graph(graph, tiny, num_orders=8).program.digest() == often.program.digest()
    assert cycles[8] < cycles[1]


def test_cycles_are_at_least_both_bounds():
    for name in FAMILIES:
        cost = compile_graph(build(name, 17)[0], tiny).cost_analysis()
        assert cost["cycles"] >= cost["resource_bound_cycles"], name
        assert cost["cycles"] >= cost["dependency_bound_cycles"], name


def test_blocks_last_until_their_last_write():
    for name in FAMILIES:
        for block in planned(name, 17, tiny).blocks:
            last = max(op.time_zero + op.template.last_cycle() for op in block.ops)
            assert block.period_cycles == last + tiny.mem_write_cycles
            assert min(op.time_zero + op.template.first_cycle() for op in block.ops) >= 0


def test_an_op_whose_operands_would_wait_too_long_is_done_in_halves(monkeypatch):
    s = Sketch(seed=3)
    graph = s.build((s.fn("add", s.random((8, 4)), s.random((8, 4))),))
    real = passes.chain_template

    def limited(memory, op):
        if op.num_vectors > 2:
            raise ChipLimitError("an operand waits too long")
        return real(memory, op)

    monkeypatch.setattr(passes, "chain_template", limited)
    assert {op.op.num_vectors for op in compile_graph(graph, tiny).schedule.blocks[0].ops} == {2}
    assert_agrees(graph, tiny, s.arguments)


def test_long_ops_are_done_in_parts_beside_products_and_whole_without():
    for with_product in (True, False):
        s = Sketch(seed=4)
        doubled = s.fn("add", x := s.random((1, 200, 4)), x)
        result = s.matmul(s.fn("to_fp16", doubled, dtype="float16"), s.random((1, 4, 3), "float16"))
        graph = s.build((doubled, result) if with_product else (doubled,))
        ops = compile_graph(graph, groqchip1).schedule.blocks[0].ops
        counts = [o.op.num_vectors for o in ops if o.op.inputs and isinstance(o.op.inputs[0], MemoryInput)]
        assert sum(counts) >= 200
        assert (max(counts) < 2 * passes.MAX_RUN) == with_product
