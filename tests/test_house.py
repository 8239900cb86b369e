"""Rules for the code base, checked on the syntax trees: floors by folder, names, file sizes.

A file imports only from its own floor or one below; its folder says which floor it is on:

    commands   mod_edge/commands/
    judges     mod_edge/verification/ evaluation/ training/ toy_scenes/ doctor/ bench/
    runtime    runtime/    not export/, and not the model except in torch_model, imported late
    export     export/
    model      mod_edge/model/ importing/
    plain      mod_edge/ itself, plan/ bundle/ data/ native/ and profiles/: no torch, no onnx
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("plain", "model", "export", "runtime", "judges", "commands")
FLOOR_OF_FOLDER = {
    "mod_edge": "plain",
    "mod_edge/plan": "plain",
    "mod_edge/bundle": "plain",
    "mod_edge/data": "plain",
    "mod_edge/native": "plain",
    "profiles": "plain",
    "mod_edge/model": "model",
    "mod_edge/model/importing": "model",
    "export": "export",
    "runtime": "runtime",
    "runtime/capture": "runtime",
    "runtime/cpu": "runtime",
    "runtime/device": "runtime",
    "mod_edge/bench": "judges",
    "mod_edge/doctor": "judges",
    "mod_edge/evaluation": "judges",
    "mod_edge/toy_scenes": "judges",
    "mod_edge/training": "judges",
    "mod_edge/verification": "judges",
    "mod_edge/commands": "commands",
}
COMMAND_ENTRY = ROOT / "mod_edge" / "__main__.py"  # `python -m mod_edge`, which is a command
UNREACHABLE = {"runtime": {"model", "export"}}  # below it, but off limits
PLAIN_PACKAGES = {*sys.stdlib_module_names, "numpy", "tokenizers", "tomli", "mod_edge"}
NATIVE_PACKAGES = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"}
TORCH_MODEL = ROOT / "runtime" / "cpu" / "torch_model.py"
MAX_LINES = 800
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

TOP_FOLDERS = ("mod_edge", "export", "runtime", "profiles")
SOURCES = sorted(path for folder in TOP_FOLDERS for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))
ALL_FILES = [*SOURCES, *SCRIPTS, *sorted((ROOT / "tests").rglob("*.py"))]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    """Dotted name under which the file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "mod_edge":
        parts = ("mod_edge", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def floor_of(path):
    if path == COMMAND_ENTRY:
        return "commands"
    return FLOOR_OF_FOLDER[path.parent.relative_to(ROOT).as_posix()]


def is_late(node):
    """Whether the node's body does not run when the file is imported."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports_of(path):
    """(module, whether in a function or for type checking only) for every import of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {inner for node in ast.walk(tree) if is_late(node) for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: write the module in full"
            for alias in node.names:
                # `from mod_edge import config` names a module, `from mod_edge.errors import X` not
                full = f"{node.module}.{alias.name}"
                found.append((full if full in MODULES else node.module, node in lazy))
    return found


def faults_in(files, fault_of):
    """The faults that `fault_of` finds, each with the name of its file."""
    return [f"{name_of(path)} {fault}" for path in files if (fault := fault_of(path))]


def test_every_folder_of_code_has_a_floor():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in SOURCES}
    assert folders == FLOOR_OF_FOLDER.keys()


def test_every_file_imports_from_its_own_floor_or_below():
    def fault_of(path):
        floor = floor_of(path)
        reachable = set(FLOORS[: FLOORS.index(floor) + 1]) - UNREACHABLE.get(floor, set())
        reachable |= {"model"} if path == TORCH_MODEL else set()
        ours = {module for module, _ in imports_of(path) if module in MODULES}
        above = sorted(each for each in ours if floor_of(MODULES[each]) not in reachable)
        return f"({floor}) imports {', '.join(above)}" if above else ""

    assert faults_in(SOURCES, fault_of) == []


def test_folders_do_not_import_each_other_in_a_circle():
    def folder_of(path):
        folder = path.parent.relative_to(ROOT)
        return "runtime" if folder.parts[0] == "runtime" else folder.as_posix()

    imported = {folder_of(path): set() for path in SOURCES}
    for path in set(SOURCES) - {COMMAND_ENTRY}:
        ours = {folder_of(MODULES[name]) for name, _ in imports_of(path) if name in MODULES}
        imported[folder_of(path)] |= ours - {folder_of(path)}
    TopologicalSorter(imported).prepare()  # a CycleError shows the circle


def test_only_functions_import_the_torch_model():
    def fault_of(path):
        eager = {module for module, is_lazy in imports_of(path) if not is_lazy}
        return "imports it" if module_of(TORCH_MODEL) in eager else ""

    assert faults_in(SOURCES, fault_of) == []


def test_the_plain_floor_needs_only_the_standard_library_numpy_and_tokenizers():
    def fault_of(path):
        if floor_of(path) != "plain":
            return ""
        allowed = PLAIN_PACKAGES | (NATIVE_PACKAGES if "native" in path.parts else set())
        more = {module.split(".")[0] for module, _ in imports_of(path)} - allowed
        return f"imports {', '.join(sorted(more))}" if more else ""

    assert faults_in(SOURCES, fault_of) == []


def test_native_packages_are_imported_only_inside_functions():
    def fault_of(path):
        if floor_of(path) != "plain" or "native" not in path.parts:
            return ""
        eager = {module.split(".")[0] for module, is_lazy in imports_of(path) if not is_lazy}
        return f"imports {eager & NATIVE_PACKAGES}" if eager & NATIVE_PACKAGES else ""

    assert faults_in(SOURCES, fault_of) == []


def test_no_file_imports_a_root_folder_by_its_bare_name():
    def fault_of(path):
        bare = {module for module, _ in imports_of(path)} & {"export", "runtime", "profiles"}
        return f"imports {min(bare)}: it is mod_edge.{min(bare)} once installed" if bare else ""

    assert faults_in(ALL_FILES, fault_of) == []


def test_no_file_is_too_long_to_read_at_once():
    def fault_of(path):
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        return f"has {num_lines} lines" if num_lines > MAX_LINES else ""

    assert faults_in(ALL_FILES, fault_of) == []


def test_no_module_has_a_vague_name():
    assert (
        faults_in(ALL_FILES, lambda path: " ".join(VAGUE_NAMES & set(path.stem.split("_")))) == []
    )
