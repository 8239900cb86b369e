"""Packages whose files were removed with another package, and their repair."""

import os
import sys

import pytest

from mod_edge.errors import BackendError
from mod_edge.native.installed import install_command, installed_targets
from mod_edge.native.package_faults import (
    PackageFault,
    check_package,
    explained_imports,
    quiet_imports,
    replace_onnxruntime,
    require_files,
)

RESTORE = "pip install --force-reinstall --no-deps"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """`site(module, *packages)`: pip lists these, but of the module only a folder is left."""

    def install(module, *packages):
        (tmp_path / module / "capi").mkdir(parents=True)
        for package in packages:
            info = tmp_path / f"{package.replace('-', '_')}-9.9.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n"
            )

    standard_library = [path for path in sys.path if "-packages" not in path]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *standard_library])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("onnxruntime", "cv2")]:
        monkeypatch.delitem(sys.modules, name)
    yield install
    for name in ("onnxruntime", "cv2"):
        sys.modules.pop(name, None)  # the empty ones; monkeypatch restores the others


REMOVED = PackageFault(
    "onnxruntime 9.9 is installed, but its files are missing", f"{RESTORE} onnxruntime"
)


def test_a_package_without_its_files_is_restored_where_pip_would_be_satisfied(site):
    site("onnxruntime", "onnxruntime")
    assert check_package("onnxruntime") == REMOVED


def test_a_removed_folder_is_the_same(site, tmp_path):
    site("onnxruntime", "onnxruntime")
    (tmp_path / "onnxruntime" / "capi").rmdir()
    (tmp_path / "onnxruntime").rmdir()
    assert check_package("onnxruntime") == REMOVED


def test_packages_that_share_files_are_removed_before_one_is_installed_again(site):
    site("cv2", "opencv-python", "opencv-python-headless")
    fault = check_package("cv2")
    assert fault.advice == (
        "pip uninstall -y opencv-python opencv-python-headless, then " + f"{RESTORE} opencv-python"
    )


def test_a_package_that_pip_does_not_list_is_installed_with_its_extra(site):
    site("onnxruntime")
    fault = check_package("onnxruntime")
    assert fault.reason == "onnxruntime is not installed"
    assert fault.advice == f"install it with: {install_command('cpu')}"


@pytest.mark.parametrize(
    "code",
    [
        "import onnxruntime; onnxruntime.SessionOptions()",
        "from onnxruntime import SessionOptions",
    ],
)
def test_an_empty_module_is_reported_where_it_is_used(site, code):
    site("onnxruntime", "onnxruntime")
    with (
        pytest.raises(BackendError, match=r"^backend onnx: onnxruntime 9\.9 is installed, but its"),
        explained_imports("backend onnx"),
    ):
        exec(code, {"__name__": "mod_edge.stand_in"})


def test_an_empty_folder_is_no_installed_target(site):
    site("onnxruntime", "onnxruntime")
    assert "cpu" not in installed_targets()


def test_a_command_that_needs_the_package_says_how_to_restore_it(site):
    site("onnxruntime", "onnxruntime")
    with pytest.raises(BackendError, match=rf"files are missing; {RESTORE} onnxruntime$"):
        require_files(["onnxruntime"])


def test_another_onnxruntime_is_installed_after_all_that_share_its_files_are_removed(site):
    site("onnxruntime", "onnxruntime", "onnxruntime-gpu")
    assert replace_onnxruntime("gpu") == (
        "pip uninstall -y onnxruntime onnxruntime-gpu, then " + install_command("gpu")
    )


def test_a_package_from_the_system_is_not_called_missing(site, tmp_path):
    """A Jetson's OpenCV comes from apt, without pip's metadata, and is built for NumPy 1."""
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2" / "__init__.py").write_text(
        "raise ImportError('numpy.core.multiarray failed to import')\n"
    )
    fault = check_package("cv2")
    assert fault.reason == "cv2 cannot be imported: numpy.core.multiarray failed to import"
    assert 'pip install "numpy<2"' in fault.advice


def test_what_libraries_print_while_they_load_is_shown(capfd):
    with quiet_imports():
        os.write(2, b"a warning\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "a warning\n"


def test_what_libraries_print_before_they_fail_is_not_shown(capfd):
    def load():
        with quiet_imports():
            os.write(2, b"Traceback (most recent call last):\n")
            raise ImportError

    with pytest.raises(ImportError):
        load()
    assert capfd.readouterr().err == ""


def test_of_two_packages_the_one_that_does_not_load_is_named(site, tmp_path):
    """PyTorch imports onnxscript only when it exports, and an old one lacks modules."""
    for name, code in (
        ("cv2", "def export():\n    import onnxruntime.not_there\n"),
        ("onnxruntime", ""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    with (
        pytest.raises(BackendError, match=r"^onnxruntime cannot be imported: No module named 'onn"),
        explained_imports(),
    ):
        exec("import cv2; cv2.export()", {"__name__": "mod_edge.stand_in"})
