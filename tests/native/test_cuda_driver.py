"""The CUDA driver: errors, memory, copies and graphs, and a stand-in with the same API."""

import inspect
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from mod_edge.errors import BackendError, CacheError
from mod_edge.native.cuda_driver import ALIGNMENT, CudaDriver, aligned
from mod_edge.native.device_calls import DeviceCalls
from mod_edge.native.installed import install_command
from tests.native.stand_in_driver import Error, MisuseError, StandInCudart


@pytest.fixture
def cudart():
    return StandInCudart()


@pytest.fixture
def driver(cudart):
    driver = CudaDriver(cudart)
    yield driver
    driver.close()


# ---- opening ----


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (Error.cudaErrorInsufficientDriver, "the NVIDIA driver is missing or too old: install"),
        (Error.cudaErrorNoDevice, "there is no NVIDIA GPU here, or CUDA_VISIBLE_DEVICES hides it"),
    ],
)
def test_without_a_driver_or_gpu_the_error_says_what_to_do(cudart, error, advice):
    cudart.failures["cudaGetDeviceCount"] = error
    with pytest.raises(BackendError, match=rf"cudaGetDeviceCount returned {error.name}: {advice}"):
        CudaDriver(cudart)


def test_without_cuda_python_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(
        BackendError, match=f"needs cuda-python.*{re.escape(install_command('rtx'))}"
    ):
        CudaDriver()


# ---- what is counted ----


def test_calls_are_counted_as_the_gpu_gets_them(cudart, driver):
    device, pinned = driver.malloc(512, "a test"), driver.pinned(256)
    before = replace(driver.calls)
    driver.upload(device, pinned.address, 256)
    for _ in range(2):
        driver.copy(device + 256, device, 256)
    driver.download(pinned.address, device, 256)
    driver.wait(driver.make_event())
    driver.synchronize()
    made = DeviceCalls(uploads=1, copies=2, downloads=1, waits=1, upload_waits=1)
    assert driver.calls.since(before) == made
    assert driver.calls.allocations == 2
    kinds = ("HostToDevice", "DeviceToDevice", "DeviceToHost")
    counted = [cudart.calls[f"cudaMemcpyAsync cudaMemcpy{kind}"] for kind in kinds]
    assert counted == [1, 2, 1]


def test_time_that_the_host_waits_is_counted(cudart, driver, monkeypatch):
    assert driver.waited_s == 0
    monkeypatch.setattr(cudart, "run_all", lambda: time.sleep(0.01))
    driver.synchronize()
    assert driver.waited_s >= 0.01


def test_memory_in_use_is_what_is_no_longer_free(driver):
    address = driver.malloc(2**20, "a test")
    assert driver.used_bytes == 2**20
    driver.free(address)
    assert driver.used_bytes == 0


# ---- memory ----


def test_too_little_pinned_memory_says_what_to_do(cudart, driver):
    cudart.failures["cudaHostAlloc"] = Error.cudaErrorMemoryAllocation
    with pytest.raises(BackendError, match=r"cudaHostAlloc .*: not enough memory: lower --window"):
        driver.pinned(8)


def test_every_address_is_aligned(driver):
    addresses = [driver.malloc(size_bytes, "a test") for size_bytes in (1, 300, 4096)]
    addresses += [driver.pinned(5).address]
    assert all(address % ALIGNMENT == 0 for address in addresses)
    assert [aligned(size_bytes) for size_bytes in (0, 1, 256, 257)] == [0, 256, 256, 512]


def test_zeroed_memory_is_zero_before_later_work_runs(cudart, driver):
    address = driver.malloc_zeroed(512, "a test")
    assert not cudart.read(address, (512,), np.uint8).any()


def test_too_little_memory_is_a_cache_error_with_the_numbers():
    driver = CudaDriver(StandInCudart(memory_bytes=2**20))
    driver.malloc(2**19, "a test")
    with pytest.raises(
        CacheError,
        match=r"Stand-in GPU has no 1\.0 MiB left for the KV cache: 0\.5 MiB of 1\.0 MiB are free; "
        "lower --window or --kv-budget",
    ):
        driver.malloc(2**20, "the KV cache")


def test_any_other_failure_of_malloc_is_a_backend_error(cudart, driver):
    cudart.failures["cudaMalloc"] = Error.cudaErrorIllegalAddress
    with pytest.raises(
        BackendError, match="cudaMalloc returned cudaErrorIllegalAddress: the GPU's"
    ):
        driver.malloc(100, "a test")


def test_close_frees_everything_and_can_be_called_twice(cudart):
    driver = CudaDriver(cudart)
    driver.malloc_zeroed(100, "a test")
    driver.free(driver.malloc(100, "a test"))
    driver.pinned(100)
    driver.record(driver.make_event())
    driver.close()
    driver.close()
    assert cudart.num_live == 0
    assert cudart.calls["cudaStreamDestroy"] == 1


# ---- copies ----


def test_copies_run_in_order_once_the_host_waits(cudart, driver):
    sent, received = driver.pinned(8), driver.pinned(8)
    first, second = driver.malloc(8, "a test"), driver.malloc(8, "a test")
    sent.array[:] = range(8)
    driver.upload(first, sent.address, 8)
    driver.copy(second, first, 8)
    driver.download(received.address, second, 8)
    assert (received.array != sent.array).any()  # not run yet
    driver.synchronize()
    np.testing.assert_array_equal(received.array, sent.array)


def test_rows_are_copied_from_one_pitch_to_another(cudart, driver):
    wide, narrow = driver.malloc(60, "a test"), driver.malloc(12, "a test")
    rows = np.arange(60, dtype=np.uint8).reshape(3, 20)
    cudart.write(wide, rows)
    driver.copy_rows(narrow, 4, wide + 5, 20, width=4, height=3)
    np.testing.assert_array_equal(cudart.read(narrow, (3, 4), np.uint8), rows[:, 5:9])


def test_waiting_for_an_event_runs_the_work_before_it(cudart, driver):
    sent, received = driver.pinned(4), driver.pinned(4)
    device, event = driver.malloc(4, "a test"), driver.make_event()
    driver.wait(event)  # never recorded: does not wait
    assert cudart.num_blocking_waits == 0
    sent.array[:] = 9
    driver.upload(device, sent.address, 4)
    driver.record(event)
    driver.download(received.address, device, 4)
    driver.wait(event)
    assert cudart.num_blocking_waits == 1
    assert (received.array != 9).all()
    sent.array[:] = 0  # the device has read it
    driver.synchronize()
    assert (received.array == 9).all()


# ---- graphs ----


def test_a_captured_graph_runs_at_every_launch(cudart, driver):
    block, device = driver.pinned(4), driver.malloc(4, "a test")
    graph = driver.capture(lambda: driver.upload(device, block.address, 4))
    for value in (3, 5):
        block.array[:] = value
        driver.launch(graph)
        assert (cudart.read(device, (4,), np.uint8) == value).all()
    driver.destroy_graph(graph)


def test_work_that_cannot_be_captured_is_a_backend_error_and_the_stream_still_works(cudart, driver):
    block, device = driver.pinned(4), driver.malloc(4, "a test")
    for work in (driver.synchronize, lambda: driver.malloc(4, "a test")):
        with pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"):
            driver.capture(work)
    cudart.failures["cudaStreamEndCapture"] = Error.cudaErrorStreamCaptureInvalidated
    with pytest.raises(BackendError, match="cudaStreamEndCapture returned cudaErrorStreamCapture"):
        driver.capture(lambda: None)
    block.array[:] = 8
    driver.upload(device, block.address, 4)
    assert (cudart.read(device, (4,), np.uint8) == 8).all()


# ---- the stand-in ----


def public_functions(kind):
    return {
        name: function
        for name, function in inspect.getmembers(kind, inspect.isfunction)
        if name.startswith("cuda")
    }


def test_the_stand_in_has_cudas_functions_and_enum_values():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    for name, function in public_functions(StandInCudart).items():
        first_line = getattr(runtime, name).__doc__.splitlines()[0]
        theirs = re.findall(r"(\w+)(?::[^,)]*)?(?=[,)])", first_line.split("(", 1)[1])
        ours = list(inspect.signature(function).parameters)[1:]
        assert len(ours) == len(theirs), first_line
    for enum in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        for member in getattr(StandInCudart, enum):
            assert int(getattr(getattr(runtime, enum), member.name)) == member.value
    for name in ("cudaStreamNonBlocking", "cudaEventDisableTiming"):
        assert getattr(runtime, name) == getattr(StandInCudart, name)


def test_the_stand_in_rejects_calls_that_would_crash_a_gpu(cudart, driver):
    block, device = driver.pinned(300), driver.malloc(300, "a test")
    with pytest.raises(MisuseError, match="not device memory"):
        driver.upload(device + 200, block.address, 101)
    with pytest.raises(MisuseError, match="not pinned"):
        driver.upload(device, np.zeros(300, np.uint8).ctypes.data, 300)
    with pytest.raises(MisuseError, match="onto itself"):
        driver.copy(device + 1, device, 200)
    with pytest.raises(MisuseError, match="onto themselves"):
        driver.copy_rows(device, 20, device + 20, 20, width=20, height=2)
    driver.free(device)
    with pytest.raises(MisuseError, match="not device memory"):
        driver.upload(device, block.address, 300)
    with pytest.raises(MisuseError, match="free already"):
        cudart.cudaFree(device)
