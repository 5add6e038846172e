"""Garbage is not searched for while a graph is compiled, and is again afterwards, whatever happened."""

import gc

import pytest
from families import FAMILIES, build

from lpu_jax.chips import tiny
from lpu_jax.lowering import pipeline
from lpu_jax.lowering.garbage import collection_paused


def test_compilation_pauses_the_search(monkeypatch):
    seen, emit = [], pipeline.emit

    def emit_and_note(plan):
        seen.append(gc.isenabled())
        return emit(plan)

    monkeypatch.setattr(pipeline, "emit", emit_and_note)
    pipeline.compile_graph(build(next(iter(FAMILIES)), 5)[0], tiny)
    assert seen == [False]
    assert gc.isenabled()


def test_an_error_leaves_the_search_as_it_was():
    with pytest.raises(KeyError), collection_paused():
        raise KeyError
    assert gc.isenabled()


def test_a_search_that_was_off_stays_off():
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
