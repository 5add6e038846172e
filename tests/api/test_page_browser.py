"""The page in headless Chromium: it loads, zooms, plays, finds, and stays fluid with 100,000 rows of instructions."""

import shutil

import numpy as np
import pytest

from lpu_jax.page.assemble import render
from lpu_jax.page.data import page_data
from lpu_jax.report.events import program_rows, unroll
from lpu_jax.report.values import stream_values
from lpu_jax.runtime.assembly import row_text
from lpu_jax.runtime.isa import Opcode, queues
from lpu_jax.runtime.machine import Machine
from lpu_jax.runtime.units.mxm import Planes

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
MANY_ROWS = 100_000
MEDIAN_FRAME_MS, LONGEST_FRAME_MS = 50, 500
"""20 frames a second on a machine without a graphics card that runs other tests at the same time."""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH; on Debian: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'lpu_jax[test]'")
    with playwright.sync_playwright() as session:
        started = session.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


def opened(browser, path):
    """A page with `problems`: console messages, errors and requests to anything but the file."""
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page.problems = []
    page.on("console", lambda message: page.problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or page.problems.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=yes]", timeout=60_000)
    return page


@pytest.fixture(scope="module")
def path(compiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    compiled.write_html(path)
    return path


@pytest.fixture
def page(browser, path):
    page = opened(browser, path)
    yield page
    assert page.problems == []
    page.close()


def view(page):
    return page.evaluate("({...app.view})")


def picture(page, canvas):
    """What is drawn, after the frames that are asked for."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate(f"document.getElementById('{canvas}').toDataURL()")


def num_colors(page, canvas):
    return page.evaluate(
        "(name) => { const { width, height } = document.getElementById(name);"
        "const pixels = document.getElementById(name).getContext('2d').getImageData(0, 0, width, height).data;"
        "return new Set(new Uint32Array(pixels.buffer)).size; }",
        canvas,
    )


def test_it_loads_without_a_network_and_shows_every_view(page, compiled):
    assert page.title() == "layers_and_tail on groqchip1"
    assert f"{compiled.cycles:,}" in page.inner_text("header")
    picture(page, "timeline")
    for canvas in ("timeline", "overview", "floorplan"):
        assert num_colors(page, canvas) > 8
    page.click("[data-tab=sram]")
    picture(page, "sram")
    assert num_colors(page, "sram") > 5
    page.click("[data-tab=report]")
    assert "loop" in page.inner_text("#tab-report")
    page.click("#scheme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"


def test_the_wheel_zooms_at_the_pointer_and_dragging_moves(page, compiled):
    box = page.locator("#timeline").bounding_box()
    x, y = box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"]
    cycle = "app.timeline.cycleAt({})".format(0.6 * box["width"])
    before, under = picture(page, "timeline"), page.evaluate(cycle)
    page.mouse.move(x, y)
    for _ in range(8):
        page.mouse.wheel(0, -150)
    page.wait_for_function("app.view.to - app.view.from < app.clock.cycles / 8")
    assert page.evaluate(cycle) == pytest.approx(under, abs=1)
    assert picture(page, "timeline") != before
    start = view(page)["from"]
    page.mouse.down()
    page.mouse.move(x - 200, y, steps=4)
    page.mouse.up()
    assert view(page)["from"] > start
    page.click("#zoom-fit")
    assert (view(page)["from"], view(page)["to"]) == (0, compiled.cycles)
    page.focus("#timeline")
    page.keyboard.press("+")
    assert view(page)["to"] - view(page)["from"] == pytest.approx(compiled.cycles / 2)


def test_the_strip_of_the_whole_program_chooses_a_part(page, compiled):
    box = page.locator("#overview").bounding_box()
    gutter = page.evaluate("GUTTER")
    place = [box["x"] + gutter + share * (box["width"] - gutter) for share in (0.25, 0.5)]
    page.mouse.move(place[0], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(place[1], box["y"] + 20, steps=3)
    page.mouse.up()
    found = view(page)
    assert [found["from"], found["to"]] == pytest.approx([0.25 * compiled.cycles, 0.5 * compiled.cycles], abs=3)
    page.mouse.click(box["x"] + gutter + 0.75 * (box["width"] - gutter), box["y"] + 20)
    assert (view(page)["from"] + view(page)["to"]) / 2 == pytest.approx(0.75 * compiled.cycles, abs=3)


def test_a_click_on_a_bar_selects_its_instruction_in_its_trip(page, compiled):
    loop = next(block for block in compiled.program.blocks if block.num_iterations > 1)
    row = loop.row_start + compiled.program.opcode[loop.row_start : loop.row_stop].tolist().index(Opcode.LW)
    start = loop.start_cycle + loop.period_cycles + int(compiled.program.cycle[row])
    page.evaluate(f"app.show({start} - 20, {start} + 60)")
    picture(page, "timeline")
    spot = page.evaluate(
        f"(() => {{ const {{ y, height }} = app.timeline.line(app.program.rows.queue[{row}]);"
        f"return {{ x: app.timeline.x({start} + 0.5), y: y + height / 2 }}; }})()"
    )
    page.locator("#timeline").click(position=spot)
    assert (view(page)["row"], view(page)["base"]) == (row, loop.start_cycle + loop.period_cycles)
    assert f"{start:,}" in page.inner_text("#inspector")


def test_it_plays_and_steps(page):
    page.select_option("#speed", "60")
    before, start = picture(page, "floorplan"), view(page)["cycle"]
    page.click("#play")
    page.wait_for_function(f"app.view.cycle >= {start + 5}")
    page.click("#play")
    assert picture(page, "floorplan") != before
    stopped = view(page)["cycle"]
    page.click("#step")
    assert view(page)["cycle"] == stopped + 1
    page.click("#step-back")
    page.fill("#cycle", "3")
    page.press("#cycle", "Enter")
    assert view(page)["cycle"] == 3


def test_an_instruction_is_found_and_shown(page, compiled):
    names = [str(queue) for queue in queues(compiled.program.chip)]
    texts = [
        f"{names[compiled.program.queue[row]]} {row_text(compiled.program, row)}".lower()
        for row in range(compiled.program.num_rows)
    ]
    wanted = [row for row, text in enumerate(texts) if "lw" in text and "mxm_e" in text]
    page.click("[data-tab=assembly]")
    page.fill("#search", "LW mxm_e")
    assert page.inner_text("#found") == f"1 of {len(wanted)}"
    page.press("#search", "Enter")
    page.press("#search", "Enter")
    assert view(page)["row"] in wanted
    assert row_text(compiled.program, view(page)["row"]) in page.inner_text("#inspector")
    assert "conftest.py:" in page.inner_text("#inspector")
    assert page.locator(".line.chosen").count() == 1
    page.check("#only")
    page.wait_for_function("document.querySelectorAll('#assembly .line').length > 0")
    assert page.evaluate("app.assembly.list") == wanted
    page.fill("#search", "no such thing")
    assert page.inner_text("#found") == "none"


def test_a_selected_instruction_names_where_its_values_come_from_and_go(page, compiled):
    names = [str(queue) for queue in queues(compiled.program.chip)]
    row = compiled.program.opcode.tolist().index(Opcode.ABC)
    page.evaluate(f"app.select({row}, 0, true)")
    found = view(page)
    assert found["sources"]
    assert {Opcode(compiled.program.opcode[i]) for i in found["sources"]} == {Opcode.READ}
    assert f"from {names[compiled.program.queue[found['sources'][0]]]}" in page.inner_text("#inspector")
    read = found["sources"][0]
    page.evaluate(f"app.select({read}, 0, true)")
    assert row in view(page)["targets"]


def test_values_are_where_the_report_says_in_every_cycle(page, compiled):
    """Values on streams, summed over bytes, in each of some cycles."""
    expected = np.zeros(compiled.cycles + 100, np.int64)
    for block in compiled.program.blocks:
        values = stream_values(unroll(program_rows(compiled.program), block))
        for iteration in range(block.num_iterations):
            base = block.start_cycle + iteration * block.period_cycles
            for start, stop in zip(values.drives.cycle.tolist(), values.last_take.tolist(), strict=True):
                expected[base + start : base + stop + 1] += 1
    cycles = [*range(0, compiled.cycles, 7), int(expected.argmax())]
    found = page.evaluate(
        "(cycles) => cycles.map((c) => { app.goTo(c); app.floorPlan.draw(); return app.floorPlan.numValues; })", cycles
    )
    assert found == expected[cycles].tolist()
    assert max(found) > 10


def watch_planes(compiled, args, patch):
    """Runs the machine; {cycle: [(rows in the buffer, rows installed) of every plane]} after each cycle with work."""
    found, machines = {}, []
    made, work = Planes.__init__, Machine.step

    def keep(planes, chip):
        made(planes, chip)
        machines.append(planes)

    def step(machine, cycle, window, groups):
        work(machine, cycle, window, groups)
        pairs = [machines[-1].planes[i : i + 2] for i in (0, 2)]
        found[cycle] = [state for pair in pairs for state in plane_states(pair)]

    patch.setattr(Planes, "__init__", keep)
    patch.setattr(Machine, "step", step)
    compiled.simulate(*args)
    return found


def plane_states(pair):
    """A wide tile is kept with one plane of a pair and fills both."""
    buffers, tiles = [plane.buffer for plane in pair], [plane.newest for plane in pair]
    for tile_list in (buffers, tiles):
        wide = [tile for tile in tile_list if tile is not None and tile.is_wide]
        tile_list[:] = wide * 2 if wide else tile_list
    return [tuple(0 if t is None else int(t.loaded.sum()) for t in both) for both in zip(buffers, tiles, strict=True)]


def test_planes_fill_as_the_machine_fills_them(page, compiled, monkeypatch):
    args = np.ones((3, 24, 24), np.float32), np.ones((5, 24), np.float32)
    states = watch_planes(compiled, args, monkeypatch)
    cycles = sorted(states)
    found = page.evaluate(
        "(cycles) => cycles.map((c) => [0, 1].flatMap((side) => [0, 1].map((plane) => {"
        "const state = app.floorPlan.planeAt(side, plane, c); return [state.loaded, state.installed]; })))",
        cycles,
    )
    assert [[tuple(plane) for plane in planes] for planes in found] == [states[cycle] for cycle in cycles]
    assert len({state for planes in states.values() for state in planes}) > 3


def test_a_module_marks_its_instructions(page, compiled):
    page.click("#tree .node:has-text('up')")
    marked = page.evaluate("app.program.text.map((_, row) => row).filter((row) => app.timeline.isMarked(row))")
    names = compiled.report().costs.op_names
    assert marked == [
        row for row, op in enumerate(compiled.program.origin.tolist()) if op >= 0 and names[op][0] == "layer/up"
    ]
    before = picture(page, "timeline")
    page.focus("#timeline")
    page.keyboard.press("Escape")
    assert picture(page, "timeline") != before


def test_sram_in_use_is_that_of_the_report(page, compiled):
    page.click("[data-tab=sram]")
    tensors = compiled.report().costs.tensors
    for cycle in (0, compiled.cycles // 2, compiled.cycles - 1):
        page.evaluate(f"app.goTo({cycle})")
        picture(page, "sram")
        live = sum(tensor.num_bytes for tensor in tensors if tensor.first_cycle <= cycle < tensor.end_cycle)
        assert page.evaluate(f"app.sram.use.textContent.startsWith(mebibytes({live}) + ' of ')")


def repeated(head, columns, block, times):
    """The data of one iteration of a block, `times` of them one after the other as one block without a loop."""
    number, period = head["blocks"].index(block), block["period"]
    rows = slice(block["first"], block["stop"])
    size = block["stop"] - block["first"]
    shift = np.repeat(np.arange(times), size)
    found = {name: np.tile(column[rows], times) for name, column in columns.items() if name.startswith("rows.")}
    found["rows.start"] = found["rows.start"] + shift * period
    mine = np.flatnonzero(columns["flights.block"] == number)
    moves = np.repeat(np.arange(times), len(mine))
    found |= {name: np.tile(column[mine], times) for name, column in columns.items() if name.startswith("flights.")}
    found["flights.row"] = found["flights.row"] - block["first"] + moves * size
    found["flights.first"] = found["flights.first"] + moves * period
    found["flights.block"] = np.zeros(len(moves), np.int64)
    first = sum(other["length"] for other in head["blocks"][:number])
    streams = columns["streams"][:, first : first + period]
    length = times * period + block["length"] - period
    found["streams"] = np.pad(np.tile(streams, times), ((0, 0), (0, length - times * period)))
    links = [columns[name] - block["first"] for name in ("links.from", "links.to")]
    inside = (links[0] >= 0) & (links[0] < size)
    for name, column in zip(("links.from", "links.to"), links, strict=True):
        found[name] = np.tile(column[inside], times) + np.repeat(np.arange(times), inside.sum()) * size
    found |= {name: column for name, column in columns.items() if name.startswith(("ops.", "tensors."))}
    chain = [
        [0, a + k * period, b + k * period, *rest]
        for k in range(times)
        for n, a, b, *rest in head["chain"]
        if n == number
    ]
    text = "\n".join(head["text"].split("\n")[rows] * times)
    only = {**block, "first": 0, "stop": size * times, "start": 0, "iterations": 1, "period": length, "length": length}
    report = {**head["report"], "cycles": length + head["chip"]["skew_cycles"]}
    return {
        **head,
        "blocks": [{**only, "cycles": length, "total": length}],
        "chain": chain,
        "text": text,
        "report": report,
    }, found


FRAMES = """async (what) => {
  const times = [], cycles = app.clock.cycles, number = 40;
  const act = {
    zoom: (i) => app.zoom(i < number / 2 ? 0.7 : 1 / 0.7, cycles * 0.6),
    move: (i) => app.show(cycles * (0.2 + 0.002 * i), cycles * (0.3 + 0.002 * i)),
    play: (i) => {
      if (i) return;
      app.show(cycles * 0.3, cycles * 0.32);
      app.goTo(Math.floor(cycles * 0.3));
      app.play(true);
    },
    scroll: () => { document.getElementById("assembly").scrollTop += 20000; },
    search: (i) => { if (i % 10 === 0) { app.assembly.search.value = "mul" + i; app.assembly.find(); } },
  }[what];
  let last = await new Promise(requestAnimationFrame);
  for (let i = 0; i < number; i++) {
    act(i);
    const time = await new Promise(requestAnimationFrame);
    times.push(time - last);
    last = time;
  }
  app.play(false);
  times.sort((a, b) => a - b);
  return [times[number / 2], times[number - 1]];
}"""


def test_a_hundred_thousand_rows_stay_fluid(browser, compiled, tmp_path):
    report = compiled.report()
    head, columns = page_data(compiled, report)
    loop = next(block for block in head["blocks"] if block["kind"] == "loop")
    times = -(-MANY_ROWS // (loop["stop"] - loop["first"]))
    path = tmp_path / "large.html"
    path.write_text(render(report, *repeated(head, columns, loop, times)), encoding="utf-8")
    page = opened(browser, path)
    assert page.evaluate("app.program.text.length") >= MANY_ROWS
    page.select_option("#speed", "2000")
    page.click("[data-tab=assembly]")
    frames = {what: page.evaluate(FRAMES, what) for what in ("zoom", "move", "play", "scroll", "search")}
    assert page.problems == []
    page.close()
    for what, (median, longest) in frames.items():
        assert median <= MEDIAN_FRAME_MS, frames
        assert longest <= LONGEST_FRAME_MS, (what, frames)
