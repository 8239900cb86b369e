"""The trial that decides how int8 weights are multiplied, on this CPU and with answers replaced.

Whether this CPU has exact u8 x s8 products is not asserted: `tests/test_other_processor.py` has one
that lacks them.
"""

import pytest

pytest.importorskip("onnxruntime")

from mod_edge.errors import BackendError
from mod_edge.native import int8_products
from mod_edge.native.int8_products import (
    U8_BY_S8,
    U8_BY_U8,
    WEIGHTS_AS_U8,
    exact_int8_products,
    graph_session_options,
)
from mod_edge.plan.weight_forms import INT8_ROWS, NBITS_INT4_CPU


@pytest.fixture
def exact(monkeypatch):
    """Products that the trial finds exact, instead of this CPU's; changed in place."""
    found = {U8_BY_S8, U8_BY_U8}
    monkeypatch.setattr(int8_products, "_are_exact", lambda products: products in found)
    exact_int8_products.cache_clear()
    yield found
    exact_int8_products.cache_clear()


def is_set(options):
    try:
        return options.get_session_config_entry(WEIGHTS_AS_U8) == "1"
    except RuntimeError:  # no such entry
        return False


def test_the_probe_is_what_its_script_writes():
    onnx = pytest.importorskip("onnx")
    from tests.native.int8_probe import PATH, int8_probe

    onnx.checker.check_model(int8_probe(), full_check=True)
    assert onnx.load(PATH) == int8_probe()


def test_products_of_u8_by_u8_are_exact_on_this_cpu():
    assert int8_products._are_exact(U8_BY_U8)


def test_wrong_products_are_noticed(monkeypatch):
    wrong = int8_products.expected_products() + 1
    monkeypatch.setattr(int8_products, "expected_products", lambda: wrong)
    assert not int8_products._are_exact(U8_BY_U8)


def test_int8_weights_stay_as_they_are_where_that_is_exact(exact):
    assert exact_int8_products() == U8_BY_S8
    assert not is_set(graph_session_options(INT8_ROWS))


def test_int8_weights_become_uint8_where_only_that_is_exact(exact):
    exact.remove(U8_BY_S8)
    assert exact_int8_products() == U8_BY_U8
    assert is_set(graph_session_options(INT8_ROWS))


@pytest.mark.parametrize("form", [None, NBITS_INT4_CPU])
def test_other_graphs_need_no_exact_products(exact, form):
    exact.clear()
    assert not is_set(graph_session_options(form))


def test_a_cpu_without_exact_products_refuses_int8_weights(exact):
    exact.clear()
    says = r"multiplies int8 weights wrongly on this CPU; upgrade it .*--weights as-dtype"
    with pytest.raises(BackendError, match=says):
        graph_session_options(INT8_ROWS)
