"""The device and its state, from folders that stand for /proc, /sys, /etc and /var."""

import pytest

from mod_edge.bench.device_facts import LEAST_CACHE_BYTES, look_at_device

JETSON = {
    "proc/cpuinfo": "processor : 0\nFeatures\t: fp asimd asimdhp asimddp crc32\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:cool\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n",
    "sys/devices/system/cpu/cpu0/cache/index0/size": "64K\n",
    "sys/devices/system/cpu/cpu0/cache/index3/size": "2048K\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1190400\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",  # switched off: no temperature
}


@pytest.fixture
def root(tmp_path):
    for name, text in JETSON.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_jetson_reports_its_power_mode_clocks_and_temperatures(root):
    facts = look_at_device(6, root)
    assert facts.power_mode == "MODE_30W"
    assert facts.clocks_mhz == {"cpu0": (1190, 1728), "17000000.gpu": (306, 624)}
    assert facts.temperatures_c == {"cpu-thermal": 51.25}
    assert facts.num_threads == 6


def test_instruction_sets_and_the_largest_cache_are_read(root):
    facts = look_at_device(1, root)
    assert facts.instruction_sets == ("asimd", "asimdhp", "asimddp")
    assert facts.cache_bytes == 2048 * 1024


def test_x86_flags_are_read_too(root):
    (root / "proc/cpuinfo").write_text("flags\t\t: fpu avx2 avx512_vnni\n")
    assert look_at_device(1, root).instruction_sets == ("avx2", "avx512_vnni")


def test_a_mode_without_a_name_is_its_number(root):
    (root / "etc/nvpmodel.conf").unlink()
    assert look_at_device(1, root).power_mode == "mode 2"


def test_a_system_without_these_files_reports_nothing(tmp_path):
    facts = look_at_device(1, tmp_path)
    assert (facts.power_mode, facts.clocks_mhz, facts.temperatures_c) == (None, {}, {})
    assert (facts.instruction_sets, facts.cache_bytes) == ((), LEAST_CACHE_BYTES)
