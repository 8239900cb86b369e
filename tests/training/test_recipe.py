"""Recipes: the fields of a TOML file, and the errors about its faults."""

from dataclasses import replace

import pytest

from mod_edge.config import MoDConfig, TextConfig, read_config
from mod_edge.errors import ConfigError, DataError
from mod_edge.model.presets import preset_config
from mod_edge.training.recipe import TrainConfig, read_recipe

MODEL = 'init = "tiny"'
TRAIN = """
trainable = ["connector", "model"]
steps = 10
batch_clips = 4
max_frames = 8
learning_rate = 1e-3
"""


@pytest.fixture
def recipe_of(tmp_path):
    """`recipe_of(model, train)`: the recipe of two sections' lines."""

    def read(model=MODEL, train=TRAIN):
        path = tmp_path / "recipe.toml"
        path.write_text(f"[model]\n{model}\n[train]\n{train}")
        return read_recipe(path)

    return read


def test_a_preset_and_the_defaults(recipe_of):
    recipe = recipe_of()
    assert recipe.init == "tiny"
    assert recipe.model == preset_config("tiny")
    assert recipe.train == TrainConfig(("connector", "model"), 10, 4, 8, 1e-3)


def test_a_checkpoints_path_is_relative_to_the_recipe(recipe_of, tiny_checkpoint, tmp_path):
    (tmp_path / "base").symlink_to(tiny_checkpoint)
    recipe = recipe_of('init = "base"')
    assert recipe.init == tiny_checkpoint.resolve()
    assert recipe.model == read_config(tiny_checkpoint / "config.json")


def test_sections_of_the_model_are_replaced(recipe_of):
    recipe = recipe_of(
        MODEL
        + """
        [model.mod_config]
        insertion = "early_exit"
        exit_layer = 1
        [model.text_config]
        hidden_size = 48
        intermediate_size = 64
        num_hidden_layers = 3
        num_attention_heads = 4
        num_key_value_heads = 2
        head_dim = 8
        vocab_size = 512
        """
    )
    assert recipe.model == replace(
        preset_config("tiny"),
        mod_config=MoDConfig("early_exit", exit_layer=1),
        text_config=TextConfig(48, 64, 3, 4, 2, 8, 512),
    )


def test_full_computation_removes_the_mod_layers(recipe_of):
    assert recipe_of(MODEL + "\nfull_computation = true").model.mod_config is None
    both = MODEL + "\nfull_computation = true\n[model.mod_config]\nkeep_ratio = 0.3"
    with pytest.raises(DataError, match="full_computation and mod_config contradict"):
        recipe_of(both)


def test_all_faults_of_a_section_are_reported_at_once(recipe_of):
    train = TRAIN.replace("steps = 10", "step = 10") + "seed = 1.5\nclip_norm = true"
    with pytest.raises(DataError) as caught:
        recipe_of(train=train)
    for part in (
        "unknown field 'step' (did you mean 'steps'?)",
        "missing field 'steps'",
        "seed=1.5, wanted a whole number",
        "clip_norm=True, wanted a finite number",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("steps = 0", "steps=0, wanted at least 1"),
        ("max_frames = 1", "max_frames=1, wanted at least 2"),
        ("learning_rate = 0", "learning_rate=0, wanted above 0"),
        ("roll_ratio = 1.5", "roll_ratio=1.5, wanted 0 to 1"),
        ("weight_decay = -1", "weight_decay=-1, wanted 0 or more"),
        ("trainable = []", "trainable=(), wanted at least one substring"),
        ('dtype = "fp8"', "dtype='fp8', wanted one of float32, bfloat16"),
        ('device = "tpu"', "device='tpu', wanted one of auto, cpu, cuda"),
        ("learning_rate = nan", "learning_rate=nan, wanted a finite number"),
        ('auxiliary_loss = "motion"', "auxiliary_loss_weight=0.0, wanted above 0 with an auxil"),
        ("auxiliary_loss_weight = 1.0", "auxiliary_loss_weight=1.0, wanted above 0 with an au"),
        ("watch_weight = 1.0", "'watch_weight', use auxiliary_loss = \"motion\" and auxiliary_"),
    ],
)
def test_values_out_of_range_are_refused(recipe_of, line, told):
    name = line.split()[0]
    lines = [each for each in TRAIN.splitlines() if not each.startswith(name)]
    with pytest.raises(DataError) as caught:
        recipe_of(train="\n".join([*lines, line]))
    assert told in str(caught.value)


def test_an_invalid_model_is_refused_with_the_recipes_name(recipe_of):
    with pytest.raises(ConfigError, match=r"recipe\.toml: \[model\].*keep_ratio"):
        recipe_of(MODEL + "\n[model.mod_config]\nkeep_ratio = 2.0")


def test_an_init_that_is_neither_preset_nor_checkpoint_is_refused(recipe_of, tmp_path):
    with pytest.raises(DataError, match=r"not a preset .*mean 'tiny'.*are tiny.*no checkpoint at"):
        recipe_of('init = "tinny"')


def test_an_init_on_the_hub_gives_the_command_that_downloads_it(recipe_of):
    with pytest.raises(DataError, match=r"hf download owner/name --local-dir name"):
        recipe_of('init = "owner/name"')


def test_a_fault_of_an_existing_checkpoint_is_told_not_hidden(recipe_of, tmp_path):
    checkpoint = tmp_path / "owner" / "name"  # as on the hub
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"init='owner/name': .*config\.json is a git-lfs pointer"):
        recipe_of('init = "owner/name"')
    with pytest.raises(DataError, match=r"no checkpoint at .*owner/nam: .*\(no such folder\)"):
        recipe_of('init = "owner/nam"')


def test_an_init_with_a_null_character_is_refused(recipe_of):
    with pytest.raises(DataError, match=r"init='base\\x00', wanted a path or a preset"):
        recipe_of(r'init = "base\u0000"')


def test_files_that_are_not_recipes_are_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(DataError, match="cannot be read"):
        read_recipe(path)
    path.write_text("[model")
    with pytest.raises(DataError, match="not valid TOML"):
        read_recipe(path)
    path.write_text(f"model = {'[' * 100_000}")
    with pytest.raises(DataError, match=r"recipe\.toml .* nested in more than 64 levels"):
        read_recipe(path)
    path.write_text(f"steps = {'9' * 400}")
    with pytest.raises(DataError, match=r"recipe\.toml .* of more than 300 digits"):
        read_recipe(path)
    path.write_text("[model]\ninit = 'tiny'\n[trian]")
    with pytest.raises(
        DataError, match=r"'trian' \(did you mean 'train'\?\); missing field 'train'"
    ):
        read_recipe(path)


def test_an_init_that_is_a_preset_and_a_folder_is_refused(recipe_of, tiny_checkpoint, tmp_path):
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    with pytest.raises(DataError, match=r"'tiny' is a preset, and .*; for the folder write './tin"):
        recipe_of('init = "tiny"')
    assert recipe_of('init = "./tiny"').init == tiny_checkpoint.resolve()
