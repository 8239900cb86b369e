"""`mod-edge bench`: its output, its document and its errors."""

import json

import pytest

from mod_edge.bench import bench as bench_module
from mod_edge.bench import ceilings, timing
from mod_edge.native import matmul_rates
from tests.commands.mod_edge_command import invoke, succeeds


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measurements so short that their figures mean nothing."""
    monkeypatch.setattr(ceilings, "LEAST_BUFFER_BYTES", 2**20)
    monkeypatch.setattr(ceilings, "MOST_BUFFER_BYTES", 2**20)
    monkeypatch.setattr(matmul_rates, "NUM_ROWS", (2,))
    monkeypatch.setattr(timing, "TURN_S", 0.001)
    monkeypatch.setattr(timing, "MIN_ROUNDS", 1)
    monkeypatch.setattr(bench_module, "FRAME_COUNTS", (1, 10))


def test_the_output_names_device_precision_and_window_and_aligns_the_rows(tiny_bundle):
    lines = succeeds("bench", tiny_bundle, "--seconds", 0.01, "--window", 300).stdout.splitlines()
    facts = {line.partition("  ")[0]: line for line in lines[: lines.index("")]}
    assert "fp32" in facts["bundle"]
    assert "300 tokens" in facts["window"]
    assert "1 threads" in facts["device"]
    assert "ratio" in facts["KV cache"]
    assert "cores" in facts["other load"] or "unknown" in facts["other load"]
    header, *table = lines[lines.index("") + 1 :]
    assert header.split()[:4] == ["past", "p50", "ms", "p95"]
    rows = table[: table.index("")]
    assert [row.split("  ")[0] for row in rows][-1] == "roll"
    assert {len(row) for row in rows} == {len(header)}
    assert "not measured: step, 10 frames: profile cpu allows 8 frames per step" in lines


def test_the_document_is_one_line_of_json(tiny_bundle):
    result = succeeds("bench", tiny_bundle, "--seconds", 0.01, "--window", 300, "--json")
    document = json.loads(result.stdout)
    assert document["window"]["num_tokens"] == 300
    assert document["rows"][-1]["name"] == "roll"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "torch"], "not the PyTorch reference"),
        (["--seconds", 0], "wanted a number above 0"),
        (["--window", 300, "--kv-budget", 1], "which set the same; give one"),
    ],
    ids=["torch", "no time", "two windows"],
)
def test_contradictions_are_errors(tiny_bundle, arguments, message):
    result = invoke("bench", tiny_bundle, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
