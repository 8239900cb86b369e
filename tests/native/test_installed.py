"""Installed targets and the origin of mod-edge, with stand-in packages."""

import json
import sys

import pytest

from mod_edge.native.installed import describe_targets, install_command, installed_targets
from mod_edge.plan.targets import TARGETS


@pytest.fixture
def site(tmp_path, monkeypatch):
    """`site(module, package, version)` installs an empty module; nothing else is installed."""

    def install(module, package, version, *, has_names=True):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text("raise AssertionError('imported')\n")
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\n")
        if version:
            with (info / "METADATA").open("a") as file:
                file.write(f"Version: {version}\n")
        if has_names:
            (info / "top_level.txt").write_text(f"{module}\n")

    for module in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    standard_library = [path for path in sys.path if "-packages" not in path]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *standard_library])
    return install


@pytest.mark.usefixtures("site")
def test_no_target_is_found_if_nothing_is_installed():
    assert installed_targets() == {}


@pytest.mark.parametrize(
    ("version", "target"),
    [
        ("10.3.0", "tensorrt-delta"),
        ("10.13.3.9", "tensorrt-delta"),
        ("10.14.1.48.post1", "tensorrt-delta"),
        ("10.15.1", "tensorrt"),
        ("10.16.0", "tensorrt"),
        ("11.4.1", "tensorrt"),
    ],
)
def test_the_version_of_tensorrt_decides_between_its_two_targets(site, version, target):
    site("tensorrt", "tensorrt", version)
    assert installed_targets() == {target: f"tensorrt {version}"}


def test_a_module_from_a_package_of_another_name_has_its_version(site):
    site("tensorrt_rtx", "tensorrt-rtx-cu13", "1.7.1.116")
    assert installed_targets() == {"rtx": "tensorrt_rtx 1.7.1.116"}


def test_a_package_without_a_list_of_modules_is_found_by_its_name(site):
    site("tensorrt", "tensorrt", "10.3.0", has_names=False)
    assert installed_targets() == {"tensorrt-delta": "tensorrt 10.3.0"}


def test_onnxruntime_gpu_is_listed_for_the_cpu_and_for_cuda(site):
    site("onnxruntime", "onnxruntime-gpu", "1.24.1")
    assert installed_targets() == {
        "cpu": "onnxruntime 1.24.1",
        "cuda": "onnxruntime-gpu 1.24.1",
    }


def test_targets_are_in_the_tables_order(site):
    site("tensorrt", "tensorrt", "11.1.0")
    site("tensorrt_rtx", "tensorrt-rtx", "1.7.1")
    site("onnxruntime", "onnxruntime", "1.24.1")
    assert list(installed_targets()) == ["cpu", "rtx", "tensorrt"]


def test_broken_metadata_is_an_unknown_version(site):
    site("tensorrt_rtx", "tensorrt-rtx", "")
    site("tensorrt", "tensorrt", "")  # could be either of the two targets
    assert installed_targets() == {"rtx": "tensorrt_rtx (unknown version)"}


def test_every_target_has_a_row_even_if_nothing_is_installed_for_it(site):
    site("onnxruntime", "onnxruntime", "1.24.1")
    rows = {row.pop("target"): row for row in describe_targets()}
    assert list(rows) == list(TARGETS)
    assert rows["cpu"] == {
        "runs_on": "ONNX Runtime on a CPU",
        "dialect": "delta",
        "opset": 20,
        "precisions": ["fp32"],
        "found": "onnxruntime 1.24.1",
    }
    assert {row["found"] for name, row in rows.items() if name != "cpu"} == {None}


# ---- how mod-edge was installed ----


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """`origin(record)` installs mod-edge with pip's record of where it came from, if any."""

    def install(record=None):
        info = tmp_path / "mod_edge-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mod-edge\nVersion: 0.1.0\n")
        if record is not None:
            (info / "direct_url.json").write_text(json.dumps(record))

    standard_library = [path for path in sys.path if "-packages" not in path]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *standard_library])
    return install


def test_an_egg_info_without_a_record_does_not_hide_the_installation(origin, tmp_path, monkeypatch):
    origin({"url": WHEEL, "archive_info": {}})
    info = tmp_path / "checkout" / "mod_edge.egg-info"
    info.mkdir(parents=True)
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mod-edge\nVersion: 0.1.0\n")
    monkeypatch.setattr(sys, "path", [str(info.parent), *sys.path])
    assert install_command("cpu") == 'pip install "/srv/mod_edge-0.1.0-py3-none-any.whl[cpu]"'


CHECKOUT = "file:///home/ann/mod%20edge"
WHEEL = "file:///srv/mod_edge-0.1.0-py3-none-any.whl"
REPOSITORY = "https://example.org/mod-edge.git"


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (None, 'pip install "mod-edge[cpu,export]"'),
        (
            {"url": CHECKOUT, "dir_info": {"editable": True}},
            'pip install -e "/home/ann/mod edge[cpu,export]"',
        ),
        ({"url": CHECKOUT, "dir_info": {}}, 'pip install "/home/ann/mod edge[cpu,export]"'),
        (
            {"url": WHEEL, "archive_info": {}},
            'pip install "/srv/mod_edge-0.1.0-py3-none-any.whl[cpu,export]"',
        ),
        (
            {"url": "https://example.org/mod_edge-0.1.0.tar.gz", "archive_info": {}},
            'pip install "mod-edge[cpu,export] @ https://example.org/mod_edge-0.1.0.tar.gz"',
        ),
        (
            {"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "1a2b"}},
            f'pip install "mod-edge[cpu,export] @ git+{REPOSITORY}@1a2b"',
        ),
    ],
    ids=["index", "editable", "folder", "wheel", "address", "repository"],
)
def test_extras_are_installed_from_mod_edges_origin(origin, record, command):
    origin(record)
    assert install_command("cpu", "export") == command


def test_options_are_added_to_the_install_command(origin):
    origin({"url": CHECKOUT, "dir_info": {"editable": True}})
    assert install_command(options="-U") == 'pip install -U -e "/home/ann/mod edge"'


def test_without_an_installation_mod_edge_comes_from_the_index(site):
    site("onnxruntime", "onnxruntime", "1.24.1")  # and no mod-edge
    assert install_command("gpu") == 'pip install "mod-edge[gpu]"'
