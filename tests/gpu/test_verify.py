"""`mod-edge verify` with engines on a real GPU: every graph with Polygraphy, and the stream."""

from mod_edge.verification.verify import verify_bundle
from tests.gpu.test_trt_model import every_bundle


@every_bundle
def test_every_engine_and_the_stream_agree_with_the_reference(
    engines_for, tiny_checkpoint, target, precision
):
    bundle, _ = engines_for(target, precision)
    report = verify_bundle(bundle.folder, tiny_checkpoint)
    assert report.is_ok, [result.reason for result in (*report.graphs, *report.streams)]
    on_engines = [result for result in report.graphs if result.backend.startswith("TensorRT")]
    assert {result.status for result in on_engines} == {"ok"}
    assert len(on_engines) == 9
    streams = {stream.backend.split()[0]: stream.status for stream in report.streams}
    assert streams["TensorRT-RTX" if target == "rtx" else "TensorRT"] == "ok"


def test_bfloat16_engines_agree_too(engines_for, tiny_checkpoint):
    bundle, _ = engines_for("rtx", "bf16")
    report = verify_bundle(bundle.folder, tiny_checkpoint)
    assert report.is_ok, [result.reason for result in (*report.graphs, *report.streams)]
