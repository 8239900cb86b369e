"""Memory that glibc keeps, on this system and with a stand-in for the C library."""

from types import SimpleNamespace

import pytest

from mod_edge.native import freed_memory
from mod_edge.native.freed_memory import return_freed_memory


def test_it_runs_on_this_system():
    return_freed_memory()


@pytest.fixture
def library(monkeypatch):
    """The C library that is loaded, on Linux; calls are counted."""
    calls = []
    library = SimpleNamespace(malloc_trim=calls.append)
    monkeypatch.setattr(freed_memory.sys, "platform", "linux")
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _name: library)
    return library, calls


def test_all_that_glibc_keeps_is_returned(library):
    return_freed_memory()
    assert library[1] == [0]


def test_a_c_library_without_such_a_function_is_left_alone(library):
    del library[0].malloc_trim
    return_freed_memory()
    assert library[1] == []


def test_other_systems_are_left_alone(library, monkeypatch):
    monkeypatch.setattr(freed_memory.sys, "platform", "win32")
    return_freed_memory()
    assert library[1] == []
