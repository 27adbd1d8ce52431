"""Data that a folder names is opened without --data only where a command of the user has opened it before."""

import pytest

from slimvit.config.recipe import DataSection
from slimvit.data import known
from slimvit.data.sources import open_data
from slimvit.utils.errors import DataError


def test_data_is_known_once_opened_and_by_its_place(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    section = DataSection(name=folder.name, val_split="val")
    options = f"add --data {folder.name} --val-split val$"
    with pytest.raises(DataError, match=f"^runs/x: its recipe names data that no command of yours.*{options}"):
        known.check_known_data(section, "runs/x")
    open_data(section)
    known.check_known_data(section, "runs/x")
    known.check_known_data(section.model_copy(update={"name": str(folder), "eval_images": 3}), "runs/x")
    for other in ({"train_split": "x"}, {"root": "x"}, {"name": "y"}):
        with pytest.raises(DataError):
            known.check_known_data(section.model_copy(update=other), "runs/x")
    monkeypatch.chdir(tmp_path.parent)  # where the relative name means another folder
    with pytest.raises(DataError):
        known.check_known_data(section, "runs/x")


def test_the_embedded_data_is_always_known():
    known.check_known_data(DataSection(name="digits"), "x")
    assert known.missing_options(DataSection(name="digits")) == []


@pytest.mark.parametrize("cache", ["/dev/null", "/proc/none"])
def test_without_a_cache_folder_nothing_is_known(folder, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    section = DataSection(name=str(folder))
    open_data(section)
    with pytest.raises(DataError):
        known.check_known_data(section, "x")
    assert known.missing_options(section) == ["--data", str(folder)]
