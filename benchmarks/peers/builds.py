"""Makes what contenders need: environments, and the models in their formats.

Everything is kept in one folder and made once. This project's own bundles are made again if the
code that writes graphs has changed.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from benchmarks.figures import ROOT
from benchmarks.peers.contenders import ENVIRONMENTS
from benchmarks.peers.worker import failure
from mod_edge.commands.console import err
from mod_edge.config import MoDConfig, TextConfig
from mod_edge.errors import ModEdgeError
from mod_edge.model.presets import GEOMETRIES, preset_config, write_random_checkpoint

PRESET = "1b"
TEXT, _VISION, _DTYPE = GEOMETRIES[PRESET]
# This project's bundles: with MoD, or None for full computation, and the weight format.
BUNDLES: Mapping[str, tuple[MoDConfig | None, str]] = {
    "mod-int8": (MoDConfig(), "int8"),
    "mod-int4": (MoDConfig(), "int4"),
    "full-int8": (None, "int8"),
}
MAX_POSITIONS = 131072  # Llama-3.2-1B's
SOURCE_PACKAGE = "llama-cpp-python==0.3.36"
CONVERTER = ("conversion", "gguf-py", "convert_hf_to_gguf.py")
GRAPH_CODE = ("export", "mod_edge/plan", "mod_edge/model")


class BuildError(ModEdgeError):
    """An environment or a model cannot be made."""


class Builds:
    """A folder of environments, models and logs."""

    def __init__(self, folder: Path) -> None:
        self.environments = folder / "environments"
        self.models = folder / "models"
        self.logs = folder / "logs"
        for each in (self.environments, self.models, self.logs):
            each.mkdir(parents=True, exist_ok=True)
        self._makers: dict[str, Callable[[Path], None]] = {
            "llama": self._write_llama,
            "llama-cpp.gguf": self._write_gguf,
            "openvino-int8": lambda target: self._export_openvino(target, "int8"),
            "openvino-int4": lambda target: self._export_openvino(target, "int4"),
            "genai-int4": self._build_genai,
        }

    def python(self, environment: str) -> Path:
        """The interpreter of an environment, which is made if it is missing.

        Raises:
            BuildError: a package cannot be installed.
        """
        if not environment:
            return Path(sys.executable)
        folder = self.environments / environment
        python, installed = folder / "bin" / "python", folder / ".installed"
        if not installed.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            log = f"install-{environment}"
            self._run(log, sys.executable, "-m", "venv", folder)
            self._run(log, python, "-m", "pip", "install", *ENVIRONMENTS[environment])
            # optimum-intel installs it, and its default build needs torch's CUDA build.
            self._run(log, python, "-m", "pip", "uninstall", "--yes", "torchvision")
            installed.touch()
        return python

    def model(self, name: str) -> Path:
        """A contender's model, which is made if it is missing.

        Raises:
            BuildError: it cannot be made.
        """
        if name in BUNDLES:
            return self._bundle(name, *BUNDLES[name])
        path = self.models / name
        if not path.exists():
            with self._staging(name) as staging:
                self._makers[name](staging)
                staging.rename(path)
        return path

    def _bundle(self, name: str, mod: MoDConfig | None, weights: str) -> Path:
        path = self.models / f"{name}-{graph_code_hash()[:8]}"
        if not path.is_dir():
            for old in self.models.glob(f"{name}-*"):
                shutil.rmtree(old)
            with self._staging(f"{name}-checkpoint") as checkpoint:
                checkpoint.mkdir()
                config = replace(preset_config(PRESET), mod_config=mod)
                write_random_checkpoint(config, checkpoint, seed=0)
                command = (sys.executable, "-m", "mod_edge", "export", checkpoint, "-o", path)
                self._run(name, *command, "--target", "cpu", "--weights", weights)
        return path

    def _write_llama(self, folder: Path) -> None:
        geometry = json.dumps(llama_geometry(TEXT))
        self._run_script("llama", "transformers", "write_llama", geometry, folder)

    def _write_gguf(self, target: Path) -> None:
        python, llama = self.python("transformers"), self.model("llama")
        with self._staging("llama-cpp-source") as source, self._staging("bf16.gguf") as unrounded:
            source.mkdir()
            download = ("-m", "pip", "download", "--no-deps", "--no-binary=:all:", SOURCE_PACKAGE)
            self._run("gguf", self.python("llama-cpp"), *download, "--dest", source)
            unpack_converter(next(source.glob("*.tar.gz")), source)
            convert = (source / CONVERTER[-1], llama, "--outtype", "bf16", "--outfile", unrounded)
            self._run("gguf", python, *convert)
            self._run_script("gguf", "llama-cpp", "quantize_gguf", unrounded, target)

    def _export_openvino(self, folder: Path, weights: str) -> None:
        export = ("-m", "optimum.commands.optimum_cli", "export", "openvino")
        task = ("--task", "text-generation-with-past", "--weight-format", weights)
        llama = self.model("llama")
        self._run(folder.name, self.python("openvino"), *export, "-m", llama, *task, folder)

    def _build_genai(self, folder: Path) -> None:
        with self._staging("genai-cache") as cache:
            build = ("-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu")
            paths = ("-m", self.model("llama"), "-o", folder, "-c", cache)
            last_row = ("--extra_options", "prune_lm_head=true")
            self._run("genai", self.python("genai"), *build, *paths, *last_row)

    def _run_script(self, log: str, environment: str, script: str, *arguments: str | Path) -> None:
        module = f"benchmarks.peers.workers.{script}"
        self._run(log, self.python(environment), "-m", module, *arguments)

    def _run(self, log_name: str, *command: str | Path) -> None:
        log = self.logs / f"{log_name}.txt"
        text = " ".join(str(part) for part in command)
        err.print(f"$ {text}", soft_wrap=True)
        # A packager's colours and bars would be in the log, and then in the page.
        environment = os.environ | {"NO_COLOR": "1", "PIP_PROGRESS_BAR": "off"}
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            raise BuildError(f"cannot be built: {failure(done.returncode, log)}")

    @contextmanager
    def _staging(self, name: str) -> Iterator[Path]:
        """A path that does not exist, and is removed at the end if it was not renamed."""
        path = self.models / f"making-{name}"
        _remove(path)
        try:
            yield path
        finally:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def llama_geometry(config: TextConfig) -> dict[str, object]:
    """The decoder as arguments of transformers' `LlamaConfig`."""
    text = asdict(config)
    assert not text.pop("qk_norm"), "Llama has no norms of queries and keys"
    return text | {"max_position_embeddings": MAX_POSITIONS}


def unpack_converter(source: Path, folder: Path) -> None:
    """Unpack llama.cpp's converter out of llama-cpp-python's source package into `folder`."""
    with tarfile.open(source) as archive:
        for member in archive:
            _package, *inner = Path(member.name).parts
            if inner[:2] == ["vendor", "llama.cpp"] and inner[2:3] and inner[2] in CONVERTER:
                member.name = "/".join(inner[2:])
                archive.extract(member, folder, filter="data")


def graph_code_hash() -> str:
    """sha256 of the code that decides what a bundle of random weights holds."""
    digest = sha256()
    for folder in GRAPH_CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
