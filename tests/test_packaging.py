"""The wheel: built, installed away from the checkout, and complete."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {  # folder in the checkout -> folder where it is installed
    "mod_edge": "mod_edge",
    "export": "mod_edge/export",
    "runtime": "mod_edge/runtime",
    "profiles": "mod_edge/profiles",
    "mod_edge/comparison": "mod_edge/comparison",
    "mod_edge/evaluation": "mod_edge/evaluation",
    "mod_edge/training": "mod_edge/training",
    "mod_edge/verification": "mod_edge/verification",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder into which the wheel was installed, without its dependencies."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    # a copy, because a build/lib left over in the checkout would fill gaps of the package list
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in (folder for folder in PACKAGES if "/" not in folder):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    run_python("-m", "build", "--wheel", "--no-isolation", "--outdir", work, source, cwd=work)
    (wheel,) = work.glob("*.whl")
    target = work / "target"
    run_python("-m", "pip", "install", "--no-deps", "--no-index", "-t", target, wheel, cwd=work)
    return target


def run_python(*arguments, cwd):
    """Standard output of this Python with `arguments`; a failure shows what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_file_of_a_package_is_in_the_wheel(installed, folder):
    kinds = (".py", ".toml", ".typed")
    wanted = {path.name for path in (ROOT / folder).iterdir() if path.suffix in kinds}
    wanted |= {"__init__.py"}
    there = installed / PACKAGES[folder]
    assert wanted <= {path.name for path in there.iterdir()}


def test_every_folder_with_an_init_is_a_listed_package():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = {pyproject["package-dir"][name] for name in pyproject["packages"]}
    tracked = {
        path.parent.relative_to(ROOT).as_posix()
        for top in PACKAGES
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert tracked == listed


def test_the_wheel_holds_nothing_but_the_package_and_its_metadata(installed):
    names = {path.name.split("-")[0] for path in installed.iterdir()}
    assert names == {"mod_edge", "bin"}
    (metadata,) = installed.glob("*.dist-info")
    assert list(metadata.rglob("LICENSE"))


def test_the_installed_packages_import_outside_the_checkout(installed):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import mod_edge, mod_edge.export, mod_edge.runtime, mod_edge.profiles\n"
        "from mod_edge import comparison, evaluation, training, verification\n"
        "mod_edge.profiles.load_profile('cpu')\n"
        "for module in (mod_edge, mod_edge.export, mod_edge.runtime, mod_edge.profiles):\n"
        "    print(module.__file__)\n"
        "for module in (comparison, evaluation, training, verification):\n"
        "    print(module.__file__)\n"
    )
    # -I: neither the working folder nor PYTHONPATH is searched. The paths are compared because a
    # checkout installed with `pip install -e` would serve what the wheel lacks.
    printed = run_python("-I", "-c", script, installed, cwd=installed).splitlines()
    assert printed == [str(installed / folder / "__init__.py") for folder in PACKAGES.values()]


def test_the_command_line_the_runtime_and_the_evaluation_import_without_torch(installed):
    script = (
        "import importlib, pkgutil, sys; sys.path.insert(0, sys.argv[1])\n"
        "absent = 'torch onnx onnxscript polygraphy safetensors matplotlib'\n"
        "for name in absent.split():\n"
        "    sys.modules[name] = None  # importing it raises ImportError\n"
        "import mod_edge.cli, mod_edge.evaluate, mod_edge.evaluate_view\n"
        "from mod_edge import evaluation, runtime\n"
        "for package in (evaluation, runtime):\n"
        "    for module in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):\n"
        "        if module.name != 'mod_edge.runtime.torch_runner':\n"
        "            importlib.import_module(module.name)\n"
    )
    run_python("-I", "-c", script, installed, cwd=installed)
