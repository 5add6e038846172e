"""The page: its data packed without loss, every value on a stream one flight, nothing from elsewhere, equal texts."""

import base64
import collections
import json
import pickle
import re
import zlib

import numpy as np
import pytest

import lpu_jax
from lpu_jax.page import page_text
from lpu_jax.page.data import page_data
from lpu_jax.page.flights import flights
from lpu_jax.page.pack import pack
from lpu_jax.report.events import program_rows, unroll
from lpu_jax.report.values import stream_values
from lpu_jax.runtime.assembly import to_text


def unpack(text):
    """(head, columns) of packed text."""
    raw = zlib.decompress(base64.b64decode(text))
    size = int.from_bytes(raw[:4], "little")
    head, offset, columns = json.loads(raw[4 : 4 + size]), 4 + size, {}
    for name, kind, length, is_delta in head.pop("columns"):
        dtype = np.dtype(kind).newbyteorder("<")
        values = np.frombuffer(raw, dtype, length, offset).astype(np.int64)
        offset += length * dtype.itemsize
        columns[name] = np.cumsum(values) if is_delta else values
    assert offset == len(raw)
    return head, columns


def test_packing_keeps_every_number():
    rng = np.random.default_rng(0)
    columns = {
        "small": rng.integers(-128, 128, 100),
        "sorted": np.sort(rng.integers(0, 2**31, 1000)),
        "far": np.array([-(2**31), 2**31 - 1, 0, -(2**31)]),
        "empty": np.zeros(0, np.int64),
        "square": np.arange(6).reshape(2, 3),
    }
    head, found = unpack(pack({"text": "äö</script>"}, columns))
    assert head == {"text": "äö</script>"}
    for name, values in columns.items():
        np.testing.assert_array_equal(found[name], np.ravel(values))


def test_a_number_that_is_too_large_is_refused():
    with pytest.raises(OverflowError, match=r"column 'x' holds 0 \.\. 2147483648, more than int32 can"):
        pack({}, {"x": np.array([0, 2**31])})


def test_every_value_on_a_stream_is_part_of_one_flight(compiled):
    rows = program_rows(compiled.program)
    total = 0
    for block in compiled.program.blocks:
        events = unroll(rows, block)
        values = stream_values(events)
        found = flights(events, values)
        expanded = collections.Counter(
            (row, stream + byte, first + k * interval, along, life)
            for row, stream, width, first, repetitions, interval, along, life in zip(
                *(column.tolist() for column in found.columns().values()), strict=True
            )
            for k in range(repetitions)
            for byte in range(width)
        )
        drives = values.drives
        columns = (events.row[drives.event], drives.stream, drives.cycle, drives.along, values.last_take - drives.cycle)
        assert expanded == collections.Counter(zip(*(c.tolist() for c in columns), strict=True))
        total += len(found.row)
        assert len(found.row) <= max(1, len(drives.event))
    assert total < sum(len(stream_values(unroll(rows, b)).drives.event) for b in compiled.program.blocks)


def test_the_data_are_those_of_the_report_and_the_program(compiled):
    report = compiled.report()
    head, columns = page_data(compiled, report)
    program = compiled.program
    assert head["report"]["cycles"] == compiled.cycles == head["tree"][1]
    instructions = [line.split(" ", 2)[2] for line in to_text(program).splitlines() if not line.startswith(".")]
    assert head["text"].split("\n") == instructions
    assert columns["rows.start"].tolist() == program.cycle.tolist()
    assert len(columns["ops.name"]) == len(report.costs.op_names)
    assert [head["names"][i] for i in columns["ops.name"]] == list(report.costs.op_names)
    peaks = columns["streams"].max(axis=1).reshape(2, 2)
    assert peaks.tolist() == report.costs.timeline.peak_streams.tolist()
    pairs = set(zip(columns["links.from"].tolist(), columns["links.to"].tolist(), strict=True))
    assert len(pairs) == len(columns["links.from"])
    wanted = set()
    for block in program.blocks:
        events = unroll(program_rows(program), block)
        values = stream_values(events)
        for take, maker in enumerate(values.maker.tolist()):
            wanted.add((int(events.row[values.drives.event[maker]]), int(events.row[values.takes.event[take]])))
    assert pairs == wanted
    sizes = columns["tensors.slices"] * columns["tensors.addresses"] * program.chip.num_lanes
    assert sizes.tolist() == [tensor.num_bytes for tensor in report.costs.tensors]
    assert sum(block["total"] for block in head["blocks"]) + program.chip.skew_cycles == compiled.cycles


def test_the_page_is_whole_and_always_the_same(compiled, tmp_path):
    path = tmp_path / "report.html"
    compiled.write_html(path)
    text = path.read_text(encoding="utf-8")
    assert text == page_text(compiled)
    assert f"{compiled.cycles:,}" in text
    assert "{{" not in text.replace("${{", "")
    for link in re.findall(r"""(?:src|href)=["']([^"']*)""", text):
        assert link.startswith("data:")
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text


def test_names_are_escaped():
    compiled = lpu_jax.lpu(lambda x: x * 3).lower(np.ones(3, np.float32)).compile()
    text = page_text(compiled)
    assert "&lt;lambda&gt; on groqchip1" in text
    assert "<lambda>" not in text


def test_a_report_writes_its_page_until_it_is_pickled(compiled, tmp_path):
    report = compiled.report()
    report.write_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page_text(compiled)
    copy = pickle.loads(pickle.dumps(report))
    assert copy.to_json() == report.to_json()
    assert copy.to_html() == report._repr_html_()
    with pytest.raises(ValueError, match=r"the report of 'layers_and_tail' was pickled and has lost its program"):
        copy.write_html(tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()
