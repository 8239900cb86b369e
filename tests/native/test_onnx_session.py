"""The size of the process's thread pool, with a stand-in for ONNX Runtime's."""

import pytest

from mod_edge.errors import BackendError, ConfigError
from mod_edge.native import onnx_session
from mod_edge.native.onnx_session import num_threads, session_options, set_num_threads


@pytest.fixture
def pools(monkeypatch):
    """Sizes of the pools that are created, in a process that has none and six usable cores."""
    onnxruntime = pytest.importorskip("onnxruntime")
    created = []
    monkeypatch.setattr(
        onnxruntime, "set_global_thread_pool_sizes", lambda intra, inter: created.append(intra)
    )
    monkeypatch.setattr(onnx_session, "_has_pool", False)
    monkeypatch.setattr(onnx_session, "_chosen_threads", None)
    monkeypatch.setattr(onnx_session, "usable_cores", lambda: 6)
    return created


def test_the_pool_has_a_thread_per_usable_core_and_is_created_once(pools):
    for _ in range(2):
        assert not session_options().use_per_session_threads
    assert pools == [6]
    assert num_threads() == 6


def test_the_pool_has_the_chosen_number_of_threads(pools):
    set_num_threads(3)
    session_options()
    assert pools == [3]
    assert num_threads() == 3


def test_another_number_after_the_first_session_is_an_error(pools):
    session_options()
    set_num_threads(6)
    with pytest.raises(ConfigError, match="has 6 threads in this process already, wanted 2"):
        set_num_threads(2)
    assert num_threads() == 6


def test_an_onnxruntime_without_shared_threads_is_too_old(pools, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.delattr(onnxruntime, "set_global_thread_pool_sizes")
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.1")
    with pytest.raises(BackendError, match=r"1\.22\.1 is too old, wanted 1\.23 or newer.*upgrade"):
        session_options()
