"""What is said of a path that is not a checkpoint's folder."""

import pytest

from mod_edge.bundle.manifest import CONFIG_FILE
from mod_edge.errors import CheckpointError
from mod_edge.model.checkpoint_folder import download_advice, read_checkpoint_config


def message_of(path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint_config(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "repository", "folder"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M", "SmolLM2-135M"),
        ("meta-llama/Llama-3.2-1B/", "meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("https://huggingface.co/owner/a.b_c", "owner/a.b_c", "a.b_c"),
        ("https:/huggingface.co/owner/name", "owner/name", "name"),  # as Path writes it
        ("huggingface.co/owner/name", "owner/name", "name"),
        ("hf://owner/name", "owner/name", "name"),
    ],
)
def test_a_name_on_the_hub_gives_the_command_that_downloads_it(name, repository, folder):
    advice = download_advice(name)
    assert advice.endswith(f": hf download {repository} --local-dir {folder}")


@pytest.mark.parametrize("name", ["checkpoint", "/models/llama", "./a/b", "../b", "a/b/c", "a b/c"])
def test_a_path_that_is_no_name_on_the_hub_is_not_taken_for_one(name):
    assert download_advice(name) == ""


def test_a_mistyped_path_in_an_existing_folder_is_not_taken_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert download_advice("build/checkpont")
    (tmp_path / "build").mkdir()
    assert download_advice("build/checkpont") == ""


def test_a_missing_folder_an_empty_one_and_a_file_are_told_apart(tmp_path):
    create = "mod-edge init tiny"
    assert (
        f"is not a checkpoint (no such folder); create one with random weights with: {create}"
        in (message_of(tmp_path / "nowhere"))
    )
    assert (
        f"is not a checkpoint (no config.json); create one with random weights with: {create}"
        in (message_of(tmp_path))
    )
    (tmp_path / "file").touch()
    assert message_of(tmp_path / "file").endswith("is a file; give the checkpoint's folder")


def test_a_config_that_links_to_nothing_is_not_called_missing(tmp_path):
    (tmp_path / CONFIG_FILE).symlink_to("../../blobs/7ef915")
    assert "config.json is a link to ../../blobs/7ef915, which does not exist" in (
        message_of(tmp_path)
    )
