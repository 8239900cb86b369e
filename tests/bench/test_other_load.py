"""Other processes, from a folder that stands for /proc."""

import os

import pytest

from mod_edge.bench.other_load import BusyProcess, LoadWatch

TICKS = os.sysconf("SC_CLK_TCK")
OURS = 7


@pytest.fixture
def proc(tmp_path):
    """`proc(busy_s, {id: (name, seconds)})`: writes the files and returns the folder."""

    def write(busy_s, processes):
        times = [busy_s * TICKS, 0, 0, 1000, 50, 0, 0, 0, 3, 0]
        (tmp_path / "stat").write_text(f"cpu  {' '.join(str(int(each)) for each in times)}\n")
        (tmp_path / "loadavg").write_text("1.25 0.50 0.20 3/120 99\n")
        for number, (name, seconds) in processes.items():
            folder = tmp_path / str(number)
            folder.mkdir(exist_ok=True)
            fields = ["S", *["0"] * 10, str(int(seconds * TICKS)), "0", "0"]
            (folder / "stat").write_text(f"{number} ({name}) {' '.join(fields)}\n")
        (tmp_path / "self").mkdir(exist_ok=True)
        (tmp_path / "self" / "stat").write_text((tmp_path / str(OURS) / "stat").read_text())
        return tmp_path

    return write


def test_others_are_named_the_busiest_first_and_we_are_not(proc):
    times = iter([100.0, 110.0])
    start = {OURS: ("mod-edge", 50), 11: ("ffmpeg (x)", 3), 12: ("idle", 1), 13: ("cc1", 0)}
    watch = LoadWatch(proc(60, start), lambda: next(times))
    end = {OURS: ("mod-edge", 65), 11: ("ffmpeg (x)", 5), 12: ("idle", 1.1), 13: ("cc1", 4)}
    proc(85, end)
    load = watch.report()
    assert load.cores == pytest.approx((25 - 15) / 10)
    assert load.processes == (BusyProcess("cc1", 0.4), BusyProcess("ffmpeg (x)", 0.2))
    assert load.load_average == 1.25
    assert load.to_json()["processes"][0] == {"name": "cc1", "cores": 0.4}


def test_a_process_that_began_meanwhile_counts(proc):
    times = iter([0.0, 10.0])
    watch = LoadWatch(proc(0, {OURS: ("mod-edge", 0)}), lambda: next(times))
    proc(5, {OURS: ("mod-edge", 0), 21: ("make", 5)})
    assert watch.report().processes == (BusyProcess("make", 0.5),)


def test_a_system_without_these_files_reports_nothing(tmp_path):
    load = LoadWatch(tmp_path).report()
    assert (load.load_average, load.cores, load.processes) == (None, None, ())
