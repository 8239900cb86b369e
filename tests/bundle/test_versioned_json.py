"""Versioned JSON documents: read back as written, an error if changed or of another format."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mod_edge.bundle.versioned_json import VersionedJson
from mod_edge.errors import BundleError, ConfigError


def names_of(data):
    if data.get("names") == ["none"]:
        raise ConfigError("a name is needed")
    if data.get("names") == ["../x"]:
        raise BundleError("do not trust this document")
    return [name.upper() for name in data["names"]]


DOCUMENT = VersionedJson(3, 2, frozenset({"names"}), names_of)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "names.json"


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("documents")


def refusal(path):
    with pytest.raises(BundleError) as caught:
        DOCUMENT.read(path, advice="write it again")
    return str(caught.value)


def test_a_written_document_is_read_without_its_version(path):
    DOCUMENT.write(path, {"names": ["a", "b"]})
    assert DOCUMENT.read(path, advice="") == ["A", "B"]
    document = json.loads(path.read_text())
    digest = document.pop("sha256")
    assert document == {"names": ["a", "b"], "format_version": 3}
    assert path.read_text().endswith("}\n")
    zeros = path.read_bytes().replace(digest.encode(), b"0" * 64)
    assert digest == hashlib.sha256(zeros).hexdigest()


@pytest.mark.parametrize("names", [["a", "b"], ["0" * 64], []])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_a_document_is_refused(shared_folder, names, data):
    path = shared_folder / "names.json"
    DOCUMENT.write(path, {"names": names})
    written = path.read_bytes()
    position = data.draw(st.integers(0, len(written)), label="position")
    size = data.draw(st.integers(0, 12), label="removed bytes")
    inserted = data.draw(st.binary(max_size=3) | st.sampled_from([b" ", b"\n", b'"', b","]))
    changed = written[:position] + inserted + written[position + size :]
    path.write_bytes(changed)
    if changed == written:
        assert DOCUMENT.read(path, advice="") == [name.upper() for name in names]
    else:
        refusal(path)


def test_an_edited_document_says_what_to_do(path):
    DOCUMENT.write(path, {"names": ["a"]})
    path.write_text(path.read_text().replace('"a"', '"b"'))
    wanted = f"{path} has changed since it was written (its sha256 differs); restore it, or write "
    assert refusal(path).startswith(wanted)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"format_version": 3', '"format_version": 2'), ('"sha256"', '"sha255"'), ("\n}", "\n\n}")],
    ids=["version", "no digest", "whitespace"],
)
def test_a_change_that_keeps_the_content_is_refused_too(path, old, new):
    DOCUMENT.write(path, {"names": ["a"]})
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert "has changed since it was written" in refusal(path)


def test_a_document_of_the_format_without_a_digest_is_read(path):
    path.write_text('{"names": ["a"], "format_version": 2}')
    assert DOCUMENT.read(path, advice="") == ["A"]


def test_a_failed_write_leaves_the_old_document(path):
    DOCUMENT.write(path, {"names": ["a"]})
    with pytest.raises(TypeError):
        DOCUMENT.write(path, {"names": {1, 2}})
    assert DOCUMENT.read(path, advice="") == ["A"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"names": []}',
        b'{"format_version": 2}',
        b'{"format_version": 2, "names": [1]}',
        b'{"format_version": 2, "names": 1}',
        b'{"format_version": 3, "names": [], "sha256": ""}',
        pytest.param(b"[" * 100_000, id="brackets"),
        pytest.param(b'{"format_version": 2, "names": ' + b"9" * 400 + b"}", id="digits"),
    ],
)
def test_a_document_of_another_shape_is_damaged(path, content):
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith("; write it again")


def test_a_missing_file_is_named(path):
    assert refusal(path) == f"{path} cannot be read: No such file or directory"


def test_a_file_that_cannot_be_read_is_not_called_damaged(path):
    path.mkdir()
    assert refusal(path) == f"{path} cannot be read: Is a directory"


def test_errors_of_the_content_are_reported(path):
    DOCUMENT.write(path, {"names": ["none"]})
    assert refusal(path) == f"{path} is damaged (a name is needed); write it again"
    DOCUMENT.write(path, {"names": ["../x"]})
    assert refusal(path) == "do not trust this document"


@pytest.mark.parametrize("version", [0, 1, "3", None, [3]])
def test_an_older_or_unknown_format_is_an_error_with_its_version(path, version):
    path.write_text(json.dumps({"format_version": version}))
    wanted = f"{path} has format {version!r}, this mod-edge reads formats 2 and 3; write it again"
    assert refusal(path) == wanted


def test_a_newer_format_says_to_upgrade(path):
    path.write_text('{"format_version": 4, "other": 1}')
    assert (
        "has format 4, this mod-edge reads formats 2 and 3; upgrade with: pip install"
        in refusal(path)
    )
    assert refusal(path).endswith("; or write it again")


@pytest.mark.parametrize(
    ("content", "is_one"),
    [
        ('{"format_version": 3, "names": []}', True),
        ('{"format_version": 9, "names": 1, "more": 2}', True),
        ('{"names": []}', False),
        ('{"format_version": 3}', False),
        ('["format_version", "names"]', False),
        ("{", False),
        pytest.param("[" * 100_000, False, id="brackets"),
    ],
)
def test_a_document_is_recognised_by_its_keys_in_any_format(path, content, is_one):
    assert not DOCUMENT.is_at(path)
    path.write_text(content)
    assert DOCUMENT.is_at(path) == is_one
