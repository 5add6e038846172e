"""Progress bars: silent without a terminal and for short work, nested, gone when the work is done."""

import io
import threading
import types

import numpy as np
import pytest

import lpu_jax
from lpu_jax.runtime import progress as module
from lpu_jax.runtime.progress import is_shown, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(stderr=stream))  # capturing of tests changes the real one
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv(module.VARIABLE, raising=False)
    return stream


def wait_until_shown():
    module._screen.timer.join()
    assert module._screen.display is not None


def test_without_a_terminal_nothing_is_written(monkeypatch):
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(stderr=(stream := io.StringIO())))
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)
    before = threading.active_count()
    with progress("working", total=3) as bar:
        bar.advance()
        assert threading.active_count() <= before
    assert (bar.done, stream.getvalue(), is_shown()) == (1, "", False)


def test_the_variable_turns_bars_off(terminal, monkeypatch):
    assert is_shown()
    monkeypatch.setenv(module.VARIABLE, "0")
    assert not is_shown()


def test_short_work_is_not_shown(terminal):
    with progress("working", total=3) as bar:
        bar.advance(3)
    assert terminal.getvalue() == ""
    assert module._screen.timer is None


def test_long_work_is_shown_with_all_bars_and_leaves_nothing(terminal, monkeypatch):
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)
    before = threading.active_count()
    with progress("outer work", total=4) as outer:
        outer.to(1)
        wait_until_shown()
        with progress("inner work", total=2_000_000, unit="bytes") as inner:
            inner.advance(500_000)
            outer.say("other work")
            outer.to(2)
            module._screen.display.refresh()
            assert [task.completed for task in module._screen.display.tasks] == [2, 500_000]
        assert len(module._screen.display.tasks) == 1
    shown = terminal.getvalue()
    for text in ("other work", "inner work", "500.0 kB of 2.0 MB", "50%"):
        assert text in shown
    assert module._screen.display is None
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(timeout=5)
    assert threading.active_count() <= before


def test_an_error_ends_the_bar(terminal, monkeypatch):
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)

    def work():
        with progress("working"):
            wait_until_shown()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert (module._screen.display, module._screen.bars) == (None, [])


class Recorder:
    """In place of the screen: how far every bar came."""

    def __init__(self):
        self.bars = []

    def open(self, bar):
        self.bars.append(bar)

    def close(self, bar):
        pass


def test_compiler_and_machine_say_how_far_they_are(monkeypatch):
    monkeypatch.setattr(module, "is_shown", lambda: True)
    monkeypatch.setattr(module, "_screen", recorder := Recorder())
    arguments = np.ones((4, 4), np.float32), np.ones((3, 4), np.float32)
    compiled = lpu_jax.lpu(lambda w, x: x @ w + 1, chip=lpu_jax.chips.tiny).lower(*arguments).compile()
    compiled.simulate(*arguments)
    found = {bar.what: bar for bar in recorder.bars}
    assert set(found) == {"Lowering", "Compiling", "Scheduling", "Running the machine"}
    assert found["Scheduling"].done == found["Scheduling"].total > 0
    machine = found["Running the machine"]
    assert machine.total == compiled.cycles
    assert 0.5 * machine.total < machine.done <= machine.total
    assert found["Compiling"].done == found["Compiling"].total - 1
