"""Memory of a process, from a folder that stands for /proc."""

from mod_edge.bench.memory import Memory, memory_now


def test_anonymous_resident_and_peak_memory_are_read(tmp_path):
    folder = tmp_path / "self"
    folder.mkdir()
    (folder / "smaps_rollup").write_text("Rss:   900 kB\nAnonymous:      512 kB\nSwap:  0 kB\n")
    (folder / "status").write_text("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    memory = memory_now(tmp_path)
    assert memory == Memory(anonymous=512 * 1024, resident=2**20, peak=2**21)
    assert memory.to_json()["peak_bytes"] == 2**21


def test_a_system_without_these_files_reports_nothing(tmp_path):
    assert memory_now(tmp_path) == Memory(None, None, None)
