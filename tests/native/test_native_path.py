"""Paths as native libraries take them."""

import ast
import os
from pathlib import Path

import pytest

from mod_edge.errors import ConfigError
from mod_edge.native.native_path import native_path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("mod_edge", "export", "runtime")
TAKES_PATH = {
    *("VideoCapture", "VideoWriter", "imread", "imwrite"),
    *("InferenceSession", "check_model", "parse_from_file", "from_file"),
}


def test_a_utf_8_path_is_taken_as_it_is():
    assert native_path(Path("caf\u00e9/\u6620\u753b.mp4")) == "caf\u00e9/\u6620\u753b.mp4"


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "caf\ud800"])
def test_a_path_that_is_not_utf_8_is_an_error_that_shows_its_bytes(name):
    with pytest.raises(ConfigError, match=r"the path 'caf\\ud.*/model' is not UTF-8.*rename"):
        native_path(Path(name) / "model")


def calls_with_an_unchecked_path():
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                is_native = getattr(node.func, "attr", None) in TAKES_PATH
                if is_native and ast.unparse(node.args[0]).startswith(("str(", "os.fspath(")):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}"


def test_native_libraries_get_no_path_that_was_not_checked():
    assert list(calls_with_an_unchecked_path()) == []
