"""Packages that are installed but do not load: one line with what to do, from every command.

The packages are stand-ins on the path of a new process, whose import raises what real ones did.
"""

import json
import os
import subprocess
import sys

import pytest

GLIBC = "/lib/libc.so.6: version `GLIBC_2.38' not found (required by {name}.so)"
LIBGL = "libGL.so.1: cannot open shared object file: No such file or directory"
NUMPY_ABI = "numpy.core.multiarray failed to import"
ARCHITECTURE = "{name}.so: wrong ELF class: ELFCLASS32"

CHECKPOINT = "CHECKPOINT"
DATA = ("--data", "data")
RECIPE = ("--config", "recipe.toml", "-o", "new")
COMMANDS = {
    "run": ("run", "bundle", "--source", "clip.mp4"),
    "eval of a bundle": ("eval", "bundle", *DATA),
    "eval of a checkpoint": ("eval", CHECKPOINT, *DATA),
    "verify": ("verify", "bundle", "--checkpoint", CHECKPOINT),
    "export": ("export", CHECKPOINT, "-o", "new"),
    "init": ("init", "tiny", "new"),
    "inspect": ("inspect", CHECKPOINT),
    "scenes": ("scenes", "new", "--train", 1, "--validation", 0, "--test", 0, "--combinations", 0),
    "pretrain": ("pretrain", "new", "--steps", 1),
    "train": ("train", *DATA, *RECIPE),
    "threshold": ("threshold", CHECKPOINT, *DATA),
    "build": ("build", "bundle", "--profile", "rtx-ada"),
}
USED_BY = {
    "numpy": tuple(COMMANDS),
    "tokenizers": ("run", "export", "inspect", "train"),
    "cv2": ("run", "scenes"),
    "torch": ("inspect", "init"),
    "onnxruntime": ("export",),
    "onnx": ("export",),
}
CASES = [
    pytest.param(package, command, id=f"{package} in {command}")
    for package, commands in USED_BY.items()
    for command in commands
]


@pytest.fixture
def site(tmp_path):
    """`site(module, code)`: a stand-in for the module that runs this code when imported."""

    def install(module, code):
        (tmp_path / "site" / module).mkdir(parents=True)
        (tmp_path / "site" / module / "__init__.py").write_text(code)

    return install


@pytest.fixture
def mod_edge(tmp_path, tiny_checkpoint):
    """`mod_edge(*arguments)`: the finished command in a process that has the stand-ins."""

    def run(*arguments):
        given = [str(tiny_checkpoint) if each == CHECKPOINT else str(each) for each in arguments]
        return subprocess.run(
            [sys.executable, "-m", "mod_edge", *given],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
        )

    return run


def error_of(done):
    """The one line of a command that failed without a traceback."""
    assert done.returncode == 1, done.stderr
    about_the_export = ("target ", "weights ")
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if not line.startswith(about_the_export)]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(("package", "command"), CASES)
def test_a_package_that_does_not_load_is_one_line(site, mod_edge, package, command):
    site(package, f"raise ImportError({GLIBC.format(name=package)!r})")
    line = error_of(mod_edge(*COMMANDS[command]))
    assert " cannot be imported: /lib/libc.so.6: version `GLIBC_2.38' not found" in line
    assert "library is older than" in line


@pytest.mark.parametrize(
    ("package", "code", "says"),
    [
        ("cv2", f"raise ImportError({LIBGL!r})", "apt-get install libgl1 libglib2.0-0"),
        ("cv2", f"raise ImportError({NUMPY_ABI!r})", 'or pip install "numpy<2"'),
        (
            "tokenizers",
            "raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')",
            'or pip install "numpy<2"',
        ),
        (
            "onnxruntime",
            f"raise OSError({ARCHITECTURE.format(name='onnxruntime')!r})",
            "wrong ELF class: ELFCLASS32; pip install --force-reinstall --no-deps onnxruntime",
        ),
        (
            "tokenizers",
            "raise SystemError('initialization failed')",
            "initialization failed; pip install --force-reinstall --no-deps tokenizers",
        ),
        (
            "onnxruntime",
            "def load():\n    import not_there\nload()",
            "cannot be imported: No module named 'not_there'; its dependencies are incomplete, "
            "install them with: pip install onnxruntime",
        ),
    ],
    ids=["libGL", "numpy ABI", "numpy dtype", "architecture", "SystemError", "a dependency"],
)
def test_the_advice_follows_the_reason(site, mod_edge, package, code, says):
    site(package, code)
    assert says in error_of(mod_edge(*COMMANDS["export" if package == "onnxruntime" else "run"]))


@pytest.mark.parametrize("command", ["run", "verify", "scenes"])
def test_what_a_package_prints_before_it_fails_is_not_shown(site, mod_edge, command):
    """NumPy prints a traceback when a package was built for another NumPy."""
    site(
        "cv2",
        "import os, sys\n"
        "sys.stderr.write('Traceback (most recent call last):\\n')\n"
        "os.write(2, b'AttributeError: _ARRAY_API not found\\n')\n"
        f"raise ImportError({NUMPY_ABI!r})\n",
    )
    assert "it was built for another NumPy than" in error_of(mod_edge(*COMMANDS[command]))


@pytest.mark.parametrize("package", ["numpy", "tokenizers", "cv2", "onnxruntime"])
def test_doctor_gives_the_same_advice(site, mod_edge, package):
    site(package, f"raise ImportError({GLIBC.format(name=package)!r})")
    command = COMMANDS["export" if package == "onnxruntime" else "run"]
    line = error_of(mod_edge(*command)).removeprefix("error: ")
    done = mod_edge("doctor", "--json")
    assert done.returncode == 1, done.stderr
    errors = [
        f"{finding['message']}; {finding['advice']}"
        for finding in json.loads(done.stdout)["findings"]
        if finding["severity"] == "error"
    ]
    assert any(line in error for error in errors), errors


@pytest.mark.parametrize(
    ("code", "raises"),
    [
        ("from cv2 import no_such_name", "ImportError: cannot import name 'no_such_name'"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import mod_edge.no_such_module", "No module named 'mod_edge.no_such_module'"),
        ("import torch.no_such_module", "No module named 'torch.no_such_module'"),
        ("from mod_edge.errors import NoSuchError", "cannot import name 'NoSuchError'"),
        ("import numpy; numpy.no_such_name", "AttributeError: module 'numpy' has no attribute"),
    ],
)
def test_a_name_that_this_code_misspells_stays_a_traceback(code, raises):
    program = (
        "import importlib.util, sys\n"
        "from mod_edge.commands.console import reports_errors\n"
        "spec = importlib.util.spec_from_loader('mod_edge.misspelt', loader=None)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        f"exec({('def command():' + chr(10) + '    ' + code)!r}, module.__dict__)\n"
        "reports_errors(module.command)()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert raises in done.stderr.splitlines()[-1]
