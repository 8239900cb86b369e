"""The inputs that a step uploads: one block, the CPU's values, in every precision."""

import numpy as np
import pytest

from mod_edge.bundle.manifest import EMBEDDING_FILE
from mod_edge.native.cuda_driver import ALIGNMENT, CudaDriver
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import FRAME, step_layout
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.targets import DTYPES, Lowering
from mod_edge.runtime.device.step_inputs import DeviceFrames, StepInputs, StepShape
from mod_edge.runtime.embedding import Embedding
from tests.frame_layouts import one_token
from tests.native.stand_in_driver import StandInCudart

pytestmark = pytest.mark.numeric

MAX_STEP_TOKENS = 40
# Measured 6e-8, float32's rounding of a cosine; one position off differs by 0.8. Kernels for arrays
# of another length or address may round the last bit differently.
ATOL_ANGLE = 1.2e-7
PRECISIONS = {dtype: precision for precision, dtype in DTYPES.items()}
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


@pytest.fixture
def config(make_config):
    return make_config()


class Machine:
    """Inputs on a stand-in GPU with a random embedding table."""

    def __init__(self, config, folder, dtype):
        self.config, self.dtype = config, dtype
        text = config.text_config
        table = np.random.default_rng(0).normal(size=(text.vocab_size, text.hidden_size))
        self.table = (table * 1000).astype(STORED[dtype])
        np.save(folder / EMBEDDING_FILE, self.table)
        self.cudart = StandInCudart()
        self.driver = CudaDriver(self.cudart)
        self.inputs = StepInputs(
            self.driver,
            Embedding(folder, config, Lowering("rtx", PRECISIONS[dtype], Rows(8, 8))),
            config,
            max_step_tokens=MAX_STEP_TOKENS,
        )

    def layout(self, pieces):
        return step_layout(pieces, self.config.frame_num_tokens, self.config.num_kept)

    def read(self, layout, *, is_mod):
        """Every input of a layer by name, without `hidden` and the cache."""
        shape = StepShape(layout.text_index.size, layout.num_frames, None)
        shapes = {
            "cos": ((layout.num_tokens, self.config.text_config.head_dim // 2), np.float32),
            "sin": ((layout.num_tokens, self.config.text_config.head_dim // 2), np.float32),
            "write_index": ((1,), np.int64),
            "past_length": ((1,), np.int64),
            "text_index": (layout.text_index.shape, np.int64),
            "frame_index": (layout.frame_index.shape, np.int64),
            "row_order": (layout.row_order.shape, np.int64),
        }
        addresses = self.inputs.addresses(shape, is_mod=is_mod)
        assert all(address % ALIGNMENT == 0 for address in addresses.values())
        return {
            name: self.cudart.read(address, *shapes[name]) for name, address in addresses.items()
        }


@pytest.fixture
def machine(config, tmp_path):
    machine = Machine(config, tmp_path, "float32")
    yield machine
    machine.driver.close()


def test_every_input_is_uploaded(machine, config):
    layout = machine.layout((2, FRAME, 1))
    machine.inputs.write(layout, [5, 6, 7], position=1_000_000, past=Rows(33, 21))
    found = machine.read(layout, is_mod=True)
    positions = np.arange(1_000_000, 1_000_000 + layout.num_tokens, dtype=np.float64)
    angles = positions[:, None] * inverse_frequencies(config.text_config)
    for name, theirs in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        np.testing.assert_allclose(found[name], theirs, rtol=0, atol=ATOL_ANGLE)
    for name in ("text_index", "frame_index", "row_order"):
        np.testing.assert_array_equal(found[name], getattr(layout, name))
    assert found["write_index"] == found["past_length"] == 21
    dense = machine.read(layout, is_mod=False)
    assert dense["write_index"] == 33
    assert "text_index" not in dense


@pytest.mark.parametrize("dtype", STORED)
def test_frames_without_text_are_a_step(config, tmp_path, dtype):
    machine = Machine(one_token(config), tmp_path, dtype)
    width = config.text_config.hidden_size
    frames = np.arange(2 * width).reshape(2, 1, width).astype(STORED[dtype])
    address, hidden = (machine.driver.malloc(frames.nbytes, "a test") for _ in range(2))
    machine.cudart.write(address, frames)
    layout = machine.layout((FRAME, FRAME))
    machine.inputs.write(layout, [], position=7, past=Rows(5, 5))
    machine.inputs.assemble(layout, DeviceFrames(address, 2, frames[0].nbytes), hidden)
    found = machine.read(layout, is_mod=True)
    assert found["text_index"].shape == (0,)
    assert found["frame_index"].tolist() == [[0], [1]]
    assert found["row_order"].tolist() == [0, 1]
    np.testing.assert_array_equal(machine.cudart.read(hidden, (2, 1, width), STORED[dtype]), frames)
    machine.driver.close()


def test_routing_is_uploaded_only_when_the_layout_changes(machine):
    layouts = [machine.layout(pieces) for pieces in ((1, FRAME), (FRAME, 1))]
    sizes = []
    for layout in (layouts[0], layouts[0], layouts[1], layouts[0]):
        machine.inputs.write(layout, [5], position=0, past=Rows(0, 0))
        found = machine.read(layout, is_mod=True)
        np.testing.assert_array_equal(found["frame_index"], layout.frame_index)
        np.testing.assert_array_equal(found["text_index"], layout.text_index)
        np.testing.assert_array_equal(found["row_order"], layout.row_order)
        sizes.append(machine.cudart.last_upload_bytes)
    assert sizes[1] < sizes[0] == sizes[2] == sizes[3]


def test_a_block_is_not_written_before_the_device_has_read_it(machine):
    """Three steps in a row without waiting: each has its own values."""
    layout = machine.layout((1,))
    hidden = [machine.driver.malloc(4096, "a test") for _ in range(3)]
    for number, address in enumerate(hidden):
        machine.inputs.write(layout, [number], position=number, past=Rows(0, 0))
        machine.inputs.assemble(layout, None, address)
    width = machine.config.text_config.hidden_size
    for number, address in enumerate(hidden):
        found = machine.cudart.read(address, (width,), np.float32)
        np.testing.assert_array_equal(found, machine.table[number])


@pytest.mark.parametrize("dtype", STORED)
def test_text_and_frames_are_in_stream_order(config, tmp_path, dtype):
    machine = Machine(config, tmp_path, dtype)
    stored, width = STORED[dtype], config.text_config.hidden_size
    frames = np.random.default_rng(1).normal(size=(3, config.frame_num_tokens, width)) * 1000
    frames = frames.astype(stored)
    address = machine.driver.malloc(frames.nbytes, "a test")
    machine.cudart.write(address, frames)
    layout = machine.layout((2, FRAME, 1, FRAME))
    hidden = machine.driver.malloc(layout.num_tokens * machine.table[0].nbytes, "a test")
    machine.inputs.write(layout, [5, 6, 7], position=0, past=Rows(0, 0))
    last_two = DeviceFrames(address, 3, frames[0].nbytes)[1:3]
    assert len(last_two) == 2
    machine.inputs.assemble(layout, last_two, hidden)
    found = machine.cudart.read(hidden, (layout.num_tokens, width), stored)
    wanted = [machine.table[5:7], frames[1], machine.table[7:8], frames[2]]
    np.testing.assert_array_equal(found, np.concatenate(wanted))
    machine.driver.close()


def test_the_longest_steps_of_either_kind_fit(machine, config):
    text = machine.layout((MAX_STEP_TOKENS,))
    num_frames = MAX_STEP_TOKENS // (config.frame_num_tokens + 1)
    frames = machine.layout((1, FRAME) * num_frames)
    for layout in (text, frames):
        ids = [5] * layout.text_index.size
        machine.inputs.write(layout, ids, position=0, past=Rows(0, 0))
        machine.read(layout, is_mod=True)
