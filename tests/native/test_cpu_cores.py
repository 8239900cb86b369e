"""The CPU quota of trees of cgroup v1 and v2 that the tests write."""

import os

import pytest

from mod_edge.native.cpu_cores import CpuCores, cpu_cores

V2 = "31 30 0:27 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER_V1 = "34 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"
HYBRID_V2 = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
ROOT_DISK = "23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"


@pytest.fixture
def machine(tmp_path):
    """`machine(groups, mounts, files)`: the quota found on a machine with these files."""

    def quota(groups, mounts, files):
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        cgroups.mkdir()
        if groups is not None:
            (proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in groups))
        if mounts is not None:
            lines = [ROOT_DISK, *mounts]
            (proc / "self" / "mountinfo").write_text("".join(f"{line}\n" for line in lines))
        for name, text in files.items():
            (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
            (cgroups / name).write_text(text)
        return cpu_cores(proc, cgroups).quota

    return quota


def v1(folder, quota, period=100_000):
    """The two files of a v1 group."""
    place = f"cpu,cpuacct/{folder}".rstrip("/")
    return {
        f"{place}/cpu.cfs_quota_us": f"{quota}\n",
        f"{place}/cpu.cfs_period_us": f"{period}\n",
    }


def test_v2_a_groups_quota_is_a_share_of_its_period(machine):
    groups, mounts = ["0::/app.slice/job"], [V2.format(root="/")]
    assert machine(groups, mounts, {"app.slice/job/cpu.max": "50000 100000\n"}) == 0.5


def test_v2_a_group_without_a_limit_has_no_quota(machine):
    groups, mounts = ["0::/job"], [V2.format(root="/")]
    assert machine(groups, mounts, {"job/cpu.max": "max 100000\n"}) is None


def test_v2_an_ancestors_quota_holds_for_the_group(machine):
    files = {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n", "a/b/c/other": ""}
    assert machine(["0::/a/b/c"], [V2.format(root="/")], files) == 1.5


def test_v2_the_tightest_quota_of_nested_groups_counts(machine):
    files = {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "30000 20000\n"}
    assert machine(["0::/a/b"], [V2.format(root="/")], files) == 1.5


def test_v2_another_groups_quota_does_not_count(machine):
    files = {"a/cpu.max": "max 100000\n", "b/cpu.max": "10000 100000\n"}
    assert machine(["0::/a"], [V2.format(root="/")], files) is None


@pytest.mark.parametrize("group", ["/", "/../..", "/../sibling"])
def test_v2_in_a_cgroup_namespace_the_mount_point_is_the_containers_group(machine, group):
    files = {"cpu.max": "50000 100000\n", "sibling/cpu.max": "10000 100000\n"}
    assert machine([f"0::{group}"], [V2.format(root="/")], files) == 0.5


def test_v2_a_group_in_a_namespace_is_found_below_a_mount_from_outside_of_it(machine):
    files = {"pod/cpu.max": "max 100000\n", "pod/job/cpu.max": "20000 100000\n"}
    assert machine(["0::/../../pod/job"], [V2.format(root="/../..")], files) == 0.2


def test_v1_a_groups_quota_is_a_share_of_its_period(machine):
    groups = ["5:cpuset:/other", "4:cpu,cpuacct:/job", "1:name=systemd:/x"]
    files = v1("job", 250_000) | v1("other", 1000)
    assert machine(groups, [OTHER_V1, V1.format(root="/")], files) == 2.5


def test_v1_minus_one_is_no_quota(machine):
    assert machine(["4:cpu,cpuacct:/job"], [V1.format(root="/")], v1("job", -1)) is None


def test_v1_an_ancestors_quota_holds_for_the_group(machine):
    files = v1("", -1) | v1("a", 50_000) | v1("a/b", -1)
    assert machine(["4:cpu,cpuacct:/a/b"], [V1.format(root="/")], files) == 0.5


def test_v1_a_container_sees_its_own_group_at_the_mount_point(machine):
    """Docker mounts the container's group; the path in /proc is the host's."""
    group, mounts = "/docker/ab12", [V1.format(root="/docker/ab12")]
    assert machine([f"4:cpu,cpuacct:{group}"], mounts, v1("", 50_000)) == 0.5


def test_v1_a_group_inside_a_container_is_found_below_the_mount_point(machine):
    files = v1("", 200_000) | v1("job", 50_000)
    mounts = [V1.format(root="/docker/ab12")]
    assert machine(["4:cpu,cpuacct:/docker/ab12/job"], mounts, files) == 0.5


def test_v1_without_the_groups_folder_the_mount_point_counts(machine):
    mounts = [V1.format(root="/")]
    assert machine(["4:cpu,cpuacct:/docker/ab12"], mounts, v1("", 50_000)) == 0.5


def test_on_a_hybrid_machine_the_hierarchy_with_the_cpu_controller_counts(machine):
    groups = ["4:cpu,cpuacct:/job", "0::/job"]
    files = v1("job", 50_000) | {"unified/job/cgroup.procs": "1\n"}
    assert machine(groups, [V1.format(root="/"), HYBRID_V2], files) == 0.5


def test_a_group_name_may_contain_colons_and_spaces(machine):
    mounts = [V2.format(root="/")]
    assert machine(["0::/a:b c"], mounts, {"a:b c/cpu.max": "50000 100000\n"}) == 0.5


@pytest.mark.parametrize(
    ("groups", "mounts"),
    [
        (None, [V2.format(root="/")]),
        (["0::/job"], None),
        (None, None),
        ([], []),
        (["?"], ["? - ?"]),
    ],
)
def test_without_readable_files_in_proc_there_is_no_quota(machine, groups, mounts):
    assert machine(groups, mounts, {"job/cpu.max": "50000 100000\n"}) is None


@pytest.mark.parametrize("text", ["", "max", "50000", "50000 0", "-1 100000", "a b", "\0"])
def test_a_quota_that_cannot_be_read_is_none(machine, text):
    assert machine(["0::/job"], [V2.format(root="/")], {"job/cpu.max": text}) is None


def test_a_folder_in_place_of_a_file_is_no_quota(machine):
    assert machine(["0::/job"], [V2.format(root="/")], {"job/cpu.max/file": ""}) is None


@pytest.mark.parametrize(
    ("in_affinity", "quota", "usable"),
    [(8, None, 8), (8, 0.5, 1), (8, 1.0, 1), (8, 1.01, 2), (8, 2.5, 3), (2, 64.0, 2), (8, 0.0, 1)],
)
def test_threads_follow_the_smaller_of_affinity_and_quota_rounded_up(in_affinity, quota, usable):
    assert CpuCores(in_affinity, quota).usable == usable


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's sched_setaffinity")
def test_the_affinity_of_the_process_counts(tmp_path):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu_cores(tmp_path, tmp_path) == CpuCores(1, None)
    finally:
        os.sched_setaffinity(0, before)
