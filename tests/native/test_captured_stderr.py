"""What native code prints to file descriptor 2 is captured, in memory."""

import os
import tempfile

import pytest

from mod_edge.native.captured_stderr import captured_stderr


def test_what_is_written_to_the_descriptor_is_captured_and_not_shown(capfd):
    with captured_stderr() as outer:
        os.write(2, b"from C++\n")
        with captured_stderr() as inner:
            os.write(2, b"nested\n")
    os.write(2, b"after\n")
    assert (outer.text, inner.text) == ("from C++\n", "nested\n")
    assert capfd.readouterr().err == "after\n"


def test_more_than_a_pipe_holds_is_captured():
    with captured_stderr() as captured:
        for _ in range(300):
            os.write(2, b"x" * 4096)
    assert captured.text == "x" * 300 * 4096


def test_it_needs_no_folder_for_temporary_files(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "gettempdir", lambda: pytest.fail("asked for one"))
        with captured_stderr() as captured:
            os.write(2, b"x")
    assert captured.text == "x"


def test_it_needs_no_memfd_create_in_the_os_module(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)  # the Pythons of conda and uv lack it
    with captured_stderr() as captured:
        os.write(2, b"from C++")
    assert captured.text == "from C++"


def test_bytes_that_are_not_utf_8_are_replaced():
    with captured_stderr() as captured:
        os.write(2, b"caf\xe9")
    assert captured.text == "caf\ufffd"


def test_it_is_shown_again_after_an_error(capfd):
    def fails():
        with captured_stderr():
            raise OSError("no such camera")

    with pytest.raises(OSError, match="no such camera"):
        fails()
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"
