"""What it costs to look at a program: report and page of SmolLM2 decode, the page in Chromium, the machine's trace.

    python benchmarks/visibility.py

Prints one line per figure with its target. Needs playwright and a Chromium on the PATH for the figures of the page.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import programs

from lpu_jax.lowering.loader import load_sram
from lpu_jax.models.shipped import SHIPPED
from lpu_jax.runtime import machine
from lpu_jax.runtime.chip import GROQCHIP1
from lpu_jax.stages import Compiled

CONTEXT, REPEATS = 512, 5
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

_FRAMES = """async () => {
  const times = [], cycles = app.clock.cycles, number = 60;
  document.getElementById("speed").value = "2000";
  let last = await new Promise(requestAnimationFrame);
  for (let i = 0; i < 2 * number; i++) {
    if (i < number) app.zoom(i < number / 2 ? 0.8 : 1 / 0.8, cycles * 0.6);
    else if (i === number) app.play(true);
    const time = await new Promise(requestAnimationFrame);
    times.push(time - last);
    last = time;
  }
  app.play(false);
  return times.sort((a, b) => a - b);
}"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured figure and its target, of one unit; target None is only reported."""

    name: str
    value: float
    unit: str
    target: float | None = None

    def __str__(self) -> str:
        met = (
            ""
            if self.target is None
            else f"   target <= {self.target:g}   {'met' if self.value <= self.target else 'MISSED'}"
        )
        return f"{self.name:<48} {self.value:10.3f} {self.unit:<4}{met}"


def seconds(action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median wall time of an action."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def reports(compiled: Compiled, page: Path) -> Iterator[Figure]:
    """Report and page of a compiled program; the first report also imports what it needs."""
    yield Figure("first report of SmolLM2 decode", seconds(compiled.report, 1), "s", 2)
    yield Figure("report of SmolLM2 decode", seconds(compiled.report), "s", 2)
    report = compiled.report()
    yield Figure("page of SmolLM2 decode, without its report", seconds(lambda: report.write_html(page)), "s")
    yield Figure("page of SmolLM2 decode, size", page.stat().st_size / 1e6, "MB", 5)


def browser(page_file: Path) -> Iterator[Figure]:
    """First paint, and frames while it zooms and plays, in headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium on the PATH: the page is not opened", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as session:
        started = session.chromium.launch(executable_path=chromium, args=list(FLAGS))
        paints, ready = [], []
        for _ in range(REPEATS):
            page = started.new_page(viewport={"width": 1440, "height": 900})
            start = time.perf_counter()
            page.goto(page_file.as_uri())
            page.wait_for_selector("html[data-ready=yes]")
            ready.append(time.perf_counter() - start)
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000)
            frames = page.evaluate(_FRAMES)
            page.close()
        started.close()
    yield Figure("first contentful paint", statistics.median(paints), "s", 2)
    yield Figure("all views ready", statistics.median(ready), "s")
    yield Figure("frame while zooming and playing, median", statistics.median(frames), "ms")
    yield Figure("frame while zooming and playing, longest", frames[-1], "ms")


def traces() -> Iterator[Figure]:
    """The machine with and without its trace, in turn; the least time of each."""
    function, arguments = programs.softmax(2)
    arrays = programs.random_arguments(arguments)
    compiled = function.lower(*arrays).compile()
    graph = compiled.compiled_graph
    inputs = compiled.lowered.edges.enter([np.asarray(leaf) for leaf in jax.tree.leaves(arrays)])

    def run(trace: bool) -> float:
        sram = load_sram(graph.allocated, inputs, graph.graph)
        return seconds(lambda: machine.run(compiled.program, sram, trace=trace), 1)

    times = [(run(False), run(True)) for _ in range(REPEATS)]
    without, traced = (min(column) for column in zip(*times, strict=True))
    yield Figure(f"machine, {compiled.cycles:,} cycles, without trace", without, "s")
    yield Figure("machine, with trace / without", traced / without, "", 1.5)


def main() -> None:
    function, arguments = SHIPPED["smollm2"][1](GROQCHIP1, CONTEXT)
    lowered = function.lower(*arguments)
    start = time.perf_counter()
    compiled = lowered.compile()
    print(Figure("compilation of SmolLM2 decode", time.perf_counter() - start, "s"))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        for figures in (reports(compiled, page), browser(page), traces()):
            for figure in figures:
                print(figure, flush=True)


if __name__ == "__main__":
    main()
