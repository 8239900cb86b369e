"""The driver on a real GPU: the behaviour that the stand-in imitates."""

import numpy as np


def test_the_driver_knows_the_gpu(driver):
    assert driver.device_name
    assert driver.compute_capability.isdigit()
    assert driver.stream > 2  # 0 to 2 are CUDA's default streams


def round_trip(driver, work, num_bytes):
    """Bytes 0, 1, ... after `work(target, source)` on the device."""
    sent, received = driver.pinned(num_bytes), driver.pinned(num_bytes)
    source = driver.malloc(num_bytes, "a test")
    target = driver.malloc_zeroed(num_bytes, "a test")
    sent.array[:] = np.arange(num_bytes) % 251
    driver.upload(source, sent.address, num_bytes)
    work(target, source)
    driver.download(received.address, target, num_bytes)
    driver.synchronize()
    return sent.array.copy(), received.array.copy()


def test_bytes_are_uploaded_copied_and_downloaded(driver):
    sent, received = round_trip(driver, lambda to, of: driver.copy(to, of, 1000), 1000)
    np.testing.assert_array_equal(received, sent)


def test_rows_are_copied_from_one_pitch_to_another(driver):
    def work(target, source):
        driver.copy_rows(target, 4, source + 5, 20, width=4, height=3)

    sent, received = round_trip(driver, work, 60)
    rows = sent.reshape(3, 20)[:, 5:9]
    np.testing.assert_array_equal(received[:12].reshape(3, 4), rows)
    assert not received[12:].any()


def test_a_captured_graph_runs_at_every_launch(driver):
    block, back = driver.pinned(4), driver.pinned(4)
    device = driver.malloc(4, "a test")
    graph = driver.capture(lambda: driver.upload(device, block.address, 4))
    for value in (3, 5):
        block.array[:] = value
        driver.launch(graph)
        driver.download(back.address, device, 4)
        driver.synchronize()
        assert (back.array == value).all()
    driver.destroy_graph(graph)


def test_close_can_be_called_twice(driver):
    driver.malloc(1000, "a test")
    driver.record(driver.make_event())
    driver.close()
    driver.close()
