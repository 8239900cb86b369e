"""The wheel: built, installed outside the checkout, and complete."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_FOLDERS = ("mod_edge", "export", "runtime", "profiles")
KINDS = (".py", ".toml", ".typed", ".onnx")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with the installed wheel, without its dependencies."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    # a copy, because an old build/lib in the checkout would bring back deleted modules
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in TOP_FOLDERS:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    run_python("-m", "build", "--wheel", "--no-isolation", "--outdir", work, source, cwd=work)
    (wheel,) = work.glob("*.whl")
    target = work / "target"
    run_python("-m", "pip", "install", "--no-deps", "--no-index", "-t", target, wheel, cwd=work)
    return target


def run_python(*arguments, cwd):
    """Standard output of this Python with `arguments`; a failure shows all output."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_every_folder_is_in_the_wheel(installed):
    wanted = {
        ("" if top == "mod_edge" else "mod_edge/") + path.relative_to(ROOT).as_posix()
        for top in TOP_FOLDERS
        for path in (ROOT / top).rglob("*")
        if path.suffix in KINDS
    }
    there = {path.relative_to(installed).as_posix() for path in (installed / "mod_edge").rglob("*")}
    assert sorted(wanted - there) == []


def test_the_wheel_holds_nothing_but_the_package_and_its_metadata(installed):
    names = {path.name.split("-")[0] for path in installed.iterdir()}
    assert names == {"mod_edge", "bin"}
    (metadata,) = installed.glob("*.dist-info")
    assert list(metadata.rglob("LICENSE"))


def test_the_installed_packages_import_outside_the_checkout(installed):
    script = (
        "import importlib, pkgutil, sys; sys.path.insert(0, sys.argv[1])\n"
        "import mod_edge\n"
        "for module in pkgutil.walk_packages(mod_edge.__path__, 'mod_edge.'):\n"
        "    if module.ispkg:\n"
        "        print(importlib.import_module(module.name).__file__)\n"
        "mod_edge.profiles.load_profile('cpu')\n"
    )
    # -I: neither the working folder nor PYTHONPATH is searched. Paths are compared, because an
    # editable install of the checkout would provide the files that the wheel lacks.
    printed = set(run_python("-I", "-c", script, installed, cwd=installed).splitlines())
    packages = {str(path) for path in (installed / "mod_edge").rglob("__init__.py")}
    assert printed == packages - {str(installed / "mod_edge" / "__init__.py")}


def test_the_command_line_the_runtime_and_the_evaluation_import_without_torch(installed):
    script = (
        "import importlib, pkgutil, sys; sys.path.insert(0, sys.argv[1])\n"
        "absent = 'torch onnx onnxscript polygraphy safetensors matplotlib'\n"
        "for name in absent.split():\n"
        "    sys.modules[name] = None  # importing it raises ImportError\n"
        "import mod_edge.commands.app, mod_edge.evaluation.evaluate\n"
        "import mod_edge.commands.evaluation_view\n"
        "from mod_edge import bundle, data, evaluation, native, plan, runtime\n"
        "for package in (bundle, data, evaluation, native, plan, runtime):\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):\n"
        "        if module.name != 'mod_edge.runtime.cpu.torch_model':\n"
        "            importlib.import_module(module.name)\n"
    )
    run_python("-I", "-c", script, installed, cwd=installed)
