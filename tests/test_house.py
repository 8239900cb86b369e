"""The house rules, read from the syntax trees: floors, names and sizes of files.

A file imports from its own floor or from one below:

    F4  the commands that people type
    F3  runtime/    without the PyTorch reference, but for torch_runner, imported only when wanted
    F2  export/
    F1  the PyTorch reference
    F0  plain data and integers: the standard library and numpy
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"mod_edge": 0, "export": 2, "runtime": 3, "profiles": 0}  # floor of a folder's files
TOP_FOLDERS = {"comparison", "evaluation", "training", "verification"}  # of mod_edge/, all F4
FILES_OF_FLOOR = {  # of mod_edge/, the folder that holds several floors
    0: (
        "__init__ config costs engine_manifest errors installed kv_budget kv_window layout "
        "manifest metrics noise onnx_session rope shape_ranges signature staging stream_metrics "
        "targets"
    ),
    1: "checkpoint layers model precision presets routing shipped tokenizer vision",
    4: (
        "__main__ bench build build_view cli cli_app cli_training console doctor doctor_finding "
        "doctor_gpu doctor_view evaluate evaluate_view export_plan inspection inspection_view "
        "stream_view targets_view verify verify_view"
    ),
}
FLOORS = {name: floor for floor, names in FILES_OF_FLOOR.items() for name in names.split()}
REACHABLE = {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 2, 3}, 4: {0, 1, 2, 3, 4}}
F0_PACKAGES = {*sys.stdlib_module_names, "numpy", "mod_edge"}
TORCH_RUNNER = ROOT / "runtime" / "torch_runner.py"
MAX_LINES = 400
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
ALL_FILES = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


every_source = pytest.mark.parametrize("path", SOURCES, ids=name_of)
every_file = pytest.mark.parametrize("path", ALL_FILES, ids=name_of)


def module_of(path):
    """Dotted name under which the file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "mod_edge":
        parts = ("mod_edge", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def floor_of(path):
    folder, *inner = path.relative_to(ROOT).parent.parts
    if folder != "mod_edge":
        return FOLDERS[folder]
    if inner and inner[0] in TOP_FOLDERS:
        return 4
    if path.stem not in FLOORS:
        pytest.fail(f"{name_of(path)} has no floor yet: add it to FILES_OF_FLOOR in {__file__}")
    return FLOORS[path.stem]


def imports_of(path):
    """(module, whether inside a function) for every import of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lazy = {
        inner for node in ast.walk(tree) if isinstance(node, functions) for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: write the module in full"
            for alias in node.names:
                # `from mod_edge import config` names a module, `from mod_edge.config import X` not
                full = f"{node.module}.{alias.name}"
                found.append((full if full in MODULES else node.module, node in lazy))
    return found


@every_source
def test_every_file_imports_from_its_own_floor_or_below(path):
    floor = floor_of(path)
    for module, _ in imports_of(path):
        if module not in MODULES:
            continue
        other = floor_of(MODULES[module])
        reachable = REACHABLE[floor] | ({1} if path == TORCH_RUNNER else set())
        assert other in reachable, f"{name_of(path)} (F{floor}) imports {module} (F{other})"


@every_source
def test_only_functions_import_the_torch_runner(path):
    eager = {module for module, is_lazy in imports_of(path) if not is_lazy}
    assert module_of(TORCH_RUNNER) not in eager


@every_source
def test_the_ground_floor_needs_only_the_standard_library_and_numpy(path):
    if floor_of(path) != 0:
        return
    more = {"profiles": {"tomli", "tomllib"}}.get(path.parent.name, set())
    allowed = F0_PACKAGES | more | {"onnx_session": {"onnxruntime"}}.get(path.stem, set())
    packages = {module.split(".")[0] for module, _ in imports_of(path)}
    assert packages <= allowed


@every_file
def test_no_file_imports_a_root_folder_by_its_bare_name(path):
    bare = {module for module, _ in imports_of(path)} & {"export", "runtime", "profiles"}
    assert not bare, f"import mod_edge.{min(bare)}: that is its name once installed"


@every_file
def test_no_file_is_longer_than_can_be_read_at_once(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES


@every_file
def test_no_module_has_a_vague_name(path):
    assert not VAGUE_NAMES & set(path.stem.split("_"))
