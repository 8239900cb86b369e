"""The whole evaluation: equal on every backend, with baselines and controls."""

import json
import math
import shutil
from dataclasses import replace

import pytest

from mod_edge.bundle.manifest import CONFIG_FILE
from mod_edge.commands.console import out
from mod_edge.commands.evaluation_view import print_evaluation
from mod_edge.config import read_config, write_config
from mod_edge.errors import ConfigError, DataError
from mod_edge.evaluation.eval_run import Row, Thresholds
from mod_edge.evaluation.evaluate import Evaluation, evaluate
from mod_edge.evaluation.free_running import EventKind, score
from mod_edge.evaluation.teacher_forcing import TeacherForced
from mod_edge.evaluation.transcript import Entry, Transcript

pytestmark = pytest.mark.numeric

# For perplexities and shares, because each backend rounds logits differently: measured 5.1e-6; a
# missing last token of a reply gives 0.7 and 0.13. Decisions and tokens are compared exactly: none
# is near a tie. The likeliest token leads the next by 5.1e-3 or more, silence is 0.068 or more in
# log odds from the threshold, router logits differ by 1.2e-3 or more at the cut; rounding changes
# logits by 1e-4.
RTOL_MEASURE = 1e-4
BASELINES = ["always silent", "always speaking", "right moments"]


@pytest.fixture(scope="module")
def of_checkpoint(tiny_checkpoint, data):
    """The tiny checkpoint with controls; this threshold gives silence, replies and long replies."""
    return evaluate(tiny_checkpoint, data, threshold=0.3, controls=True)


def printed(evaluation):
    with out.capture() as captured:
        print_evaluation(evaluation, is_verbose=True)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


@pytest.mark.parametrize("lowering", [("cpu", "fp32"), ("cuda", "fp32")], ids=lambda each: each[0])
def test_every_backend_has_the_same_measures(of_checkpoint, data, any_bundle, lowering):
    bundle = evaluate(
        any_bundle(*lowering), data, threshold=0.3, controls=True, backend="onnx", device="cpu"
    )
    assert bundle.backend.startswith("onnx")
    for ours, theirs in zip(bundle.rows, of_checkpoint.rows, strict=True):
        # These are counts, so equal decisions and tokens give equal numbers.
        assert (ours.name, ours.free_running) == (theirs.name, theirs.free_running)
        for name, wanted in vars(theirs.teacher_forced).items():
            found = getattr(ours.teacher_forced, name)
            near = wanted if wanted is None else pytest.approx(wanted, rel=RTOL_MEASURE)
            assert found == near, (ours.name, name)
    assert bundle.transcripts == of_checkpoint.transcripts
    heads = [replace(each, rows=[], model="", backend="") for each in (bundle, of_checkpoint)]
    assert heads[0] == heads[1]


def test_rows_are_the_model_its_controls_and_the_baselines(of_checkpoint):
    assert [row.name for row in of_checkpoint.rows] == [
        "model",
        "black video",
        "shuffled frames",
        *BASELINES,
    ]
    model, black, shuffled = of_checkpoint.rows[:3]
    assert model != replace(black, name="model")
    assert model != replace(shuffled, name="model")
    silent, speaking, moments = of_checkpoint.rows[3:]
    assert silent.free_running.num_said == 0
    assert speaking.free_running.recall == 0.5  # "A man stops." is one of two captions, twice
    assert moments.free_running.moment_f1 == 1
    assert moments.teacher_forced == TeacherForced(time_diff_s=0.0)


def test_an_evaluation_names_its_inputs(of_checkpoint, tiny_checkpoint, data):
    assert (of_checkpoint.model, of_checkpoint.data) == (str(tiny_checkpoint), str(data))
    assert (of_checkpoint.num_clips, of_checkpoint.num_frames) == (2, 20)
    assert of_checkpoint.most_frequent == "A man stops."
    assert of_checkpoint.baseline_from == "test"  # there is no train.jsonl
    assert of_checkpoint.warnings == []


def test_thresholds_are_the_published_ones_unless_one_is_given(
    tiny_checkpoint, data, of_checkpoint
):
    assert of_checkpoint.thresholds == Thresholds(0.3, 0.3)
    steps = []
    default = evaluate(tiny_checkpoint, data, max_clips=1, on_step=lambda *step: steps.append(step))
    assert default.thresholds == Thresholds(0.0, 0.725)
    assert default.num_clips == 1
    assert [row.name for row in default.rows] == ["model", *BASELINES]
    assert steps == [("clip 1 of 1", 0, 1)]


def test_baselines_use_the_training_split_if_there_is_one(tiny_checkpoint, data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    line = json.loads((data / "test.jsonl").read_text().splitlines()[0])
    line["conversation"] = [{"role": "assistant", "content": "A dog barks.", "time": 1.0}]
    (copy / "train.jsonl").write_text(json.dumps(line))
    found = evaluate(tiny_checkpoint, copy, max_clips=1)
    assert (found.baseline_from, found.most_frequent) == ("train", "A dog barks.")


def test_a_fault_in_the_training_split_is_named_before_the_model_is_opened(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    line = json.loads((data / "test.jsonl").read_text().splitlines()[0])
    (copy / "train.jsonl").write_text(json.dumps(line | {"duration": 1e300}))
    with pytest.raises(DataError, match=r"train\.jsonl: line 1: duration=1e\+300"):
        evaluate(tmp_path / "no model", copy)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_clips": 0}, "max_clips=0, wanted at least 1"),
        ({"tolerance_s": -1.0}, "tolerance=-1.0, wanted a number of seconds"),
        ({"tolerance_s": math.nan}, "tolerance=nan"),
        ({"threshold": 1.5}, "threshold=1.5, wanted a probability"),
    ],
)
def test_values_out_of_range_are_refused(tiny_checkpoint, data, setting, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(tiny_checkpoint, data, **setting)


def test_videos_that_end_before_their_lines_are_counted(tiny_checkpoint, data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    first, second = map(json.loads, (data / "test.jsonl").read_text().splitlines())
    second["duration"] = 30.0
    (copy / "test.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    (warning,) = evaluate(tiny_checkpoint, copy).warnings
    assert warning.startswith("1 of 2 videos end before their lines' duration; captions due")


def test_untrained_parts_are_named(tiny_checkpoint, data, tmp_path):
    """As an import leaves them: the figures are then those of noise."""
    folder = tmp_path / "imported"
    shutil.copytree(tiny_checkpoint, folder)
    config = replace(read_config(folder / CONFIG_FILE), untrained_parts=("connector", "router"))
    write_config(config, folder / CONFIG_FILE)
    connector, routers = evaluate(folder, data, max_clips=1).warnings
    assert connector.startswith("the connector is untrained")
    assert routers.startswith("the routers are untrained")


def test_the_document_is_json_without_infinities(of_checkpoint):
    row = of_checkpoint.rows[0]
    endless = replace(row, teacher_forced=replace(row.teacher_forced, lm_ppl=math.inf))
    document = replace(of_checkpoint, rows=[endless]).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    (found,) = document["rows"]
    assert found["teacher_forced"]["lm_ppl"] is None
    assert found["free_running"]["f1"] == row.free_running.f1
    assert document["thresholds"] == {"teacher_forced": 0.3, "free_running": 0.3}


def test_the_printed_evaluation(capsys):
    free = replace(
        score([], fps=2.0, tolerance_s=1.0),
        num_true=8,
        num_said=4,
        num_right=3,
        num_moments=4,
        time_error_s=-0.125,
        time_error_abs_s=0.25,
        num_answers=5,
        num_answers_right=2,
        kinds={"stops\x1b": EventKind(4, 3, 4)},
    )
    forced = TeacherForced(1.2345, 0.5, 0.75, 0.875)
    rows = [
        Row("model", forced, free),
        Row(
            "always silent",
            TeacherForced(2583.2),
            replace(free, num_said=0, num_answers=0, time_error_s=None),
        ),
    ]
    found = Evaluation(
        "ck",
        "torch: here",
        "d",
        "test",
        2,
        20,
        2.0,
        1.0,
        Thresholds(0.0, 0.725),
        "train",
        "It.",
        rows,
        [Transcript("clip\x1b", ENTRIES)],
        ["no sound"],
    )
    assert printed(found) == TABLE
    assert "warning: no sound" in capsys.readouterr().err


ENTRIES = (
    Entry(1.0, None, "It stops.", "It stops.", 0.5, is_right=True),
    Entry(3.0, "Who?", "It.", "\x1bHe.", 0.0, is_right=False),
    Entry(4.5, None, None, "Hello.", None, is_right=False),
)

TABLE = """\
clip : 1 of 1 captions right
 time  late         asked  due        said
1.0 s  +0.5  right         It stops.  "
3.0 s  +0.0  WRONG  Who?   It.         He.
4.5 s     -  WRONG         -          Hello.

model      ck
backend    torch: here
data       d, test: 2 clips, 20 frames at 2 frames/s
baselines  say 'It.', the most frequent caption of split train

fed the true dialogue, threshold 0
               LM-PPL  TimeDiff  Fluency  LM-Correctness
model           1.234    0.50 s    0.750           0.875
always silent    2583         -        -               -

free-running, threshold 0.725, tolerance 1 s
               precision  recall     F1  moment F1    error  |error|  answers
model              0.750   0.375  0.500      0.667  -0.12 s   0.25 s      2/5
always silent          -   0.375  0.750      1.000        -   0.25 s        -
model: 3 of 8 captions right, something said at 4 of their moments

model's captions by kind of event
        due  right  right moment
stops     4  0.750         1.000
"""
