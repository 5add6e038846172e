"""Progress bars on standard error for whatever takes more than a second; silent when that is no terminal.

    with progress("Running the machine", total=cycles) as bar:
        for window in windows:
            bar.to(window.cycle)

Bars may be nested and come from several threads; all of them are shown together, and vanish when they are done. The
environment variable LPU_JAX_PROGRESS=0 turns them off.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY_SECONDS = 1.0
VARIABLE = "LPU_JAX_PROGRESS"


class Bar:
    """How far one piece of work is.

    Attributes:
      what: what is being done, shown before the bar.
      total: units of work in all; None while that is unknown.
      unit: "" for plain counts, "bytes" for sizes with a speed.
      done: units that are done, 0 <= done.
    """

    def __init__(self, what: str, total: float | None, unit: str) -> None:
        """Nothing is done yet."""
        self.what, self.total, self.unit, self.done = what, total, unit, 0.0
        self.task: TaskID | None = None

    def advance(self, amount: float = 1) -> None:
        """`amount` more units are done."""
        self.to(self.done + amount)

    def to(self, done: float) -> None:
        """`done` units are done in all."""
        self.done = done
        if self.task is not None:
            _screen.update(self)

    def say(self, what: str) -> None:
        """Changes what is being done."""
        self.what = what
        if self.task is not None:
            _screen.update(self)


@contextlib.contextmanager
def progress(what: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """Shows a bar while the body runs, from DELAY_SECONDS after the outermost bar began.

    Args:
      what: what is being done.
      total: units of work; without it the bar only shows that something is going on.
      unit: "bytes" shows sizes and a speed.
    """
    bar = Bar(what, total, unit)
    if not is_shown():
        yield bar
        return
    _screen.open(bar)
    try:
        yield bar
    finally:
        _screen.close(bar)


def is_shown() -> bool:
    """Whether bars are shown: standard error is a terminal, and nobody turned them off."""
    stream = sys.stderr
    return stream is not None and stream.isatty() and os.environ.get(VARIABLE) != "0"


class _Screen:
    """All bars under way; the terminal is left alone until the first of them has run for a while."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.bars: list[Bar] = []
        self.display: Progress | None = None
        self.timer: threading.Timer | None = None

    def open(self, bar: Bar) -> None:
        with self.lock:
            self.bars.append(bar)
            if self.display is not None:
                self._add(bar)
            elif self.timer is None:
                self.timer = threading.Timer(DELAY_SECONDS, self._show)
                self.timer.daemon = True
                self.timer.start()

    def close(self, bar: Bar) -> None:
        with self.lock:
            self.bars.remove(bar)
            if self.display is not None and bar.task is not None:
                self.display.remove_task(bar.task)
            if self.bars:
                return
            if self.timer is not None:
                self.timer.cancel()
            if self.display is not None:
                self.display.stop()
            self.timer = self.display = None

    def update(self, bar: Bar) -> None:
        display = self.display
        if display is not None and bar.task is not None:
            with contextlib.suppress(KeyError):  # closed by another thread
                display.update(bar.task, completed=bar.done, description=bar.what)

    def _show(self) -> None:
        with self.lock:
            if self.timer is None or self.display is not None:
                return
            self.display = _display()
            for bar in self.bars:
                self._add(bar)
            self.display.start()

    def _add(self, bar: Bar) -> None:
        assert self.display is not None
        bar.task = self.display.add_task(bar.what, total=bar.total, completed=int(bar.done), unit=bar.unit)


def _display() -> Progress:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        """Done and total, or their share; for bytes sizes and a speed."""

        def render(self, task: Task) -> Text:
            """One cell."""
            if task.total is None:
                return Text("")
            if task.fields["unit"] != "bytes":
                return Text(f"{task.percentage:3.0f}%", style="progress.percentage")
            speed = f", {decimal(int(task.speed))}/s" if task.speed else ""
            return Text(
                f"{decimal(int(task.completed))} of {decimal(int(task.total))}{speed}", style="progress.download"
            )

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), Amount(), TimeElapsedColumn())
    return Progress(*columns, console=Console(file=sys.stderr), transient=True)


_screen = _Screen()
