"""Folders that somebody else made: the data that they name is not opened, and links in them carry nothing out."""

import os
import shutil

import pytest
import yaml

import slimvit
from slimvit.data import folder as folders
from slimvit.report.compare import part_plots, tradeoff_plots
from slimvit.utils.errors import SlimvitError
from slimvit.utils.files import copy_files
from slimvit.utils.reading import Unreadable, open_regular
from slimvit.workflows.push.contents import PushOptions, upload_contents

FEW = ("--train-images", 16, "--eval-images", 16, "--batch-size", 8)
CUT = ("--calibration-images", 16, "--criterion", "magnitude", "--refit", "none", "--ratio", 0.5)
SECRET = "the user's own words"


@pytest.fixture(scope="module")
def made(slimvit_, digit_folder, tmp_path_factory):
    """A run on a folder, and the folder."""
    root = tmp_path_factory.mktemp("made")
    photos = digit_folder(root / "photos", classes=10, train=4, val=2)
    slimvit_("prune", "vit_digits", "--data", photos, *FEW, *CUT, "--out", root / "run")
    return root / "run", photos


def naming(run, place, **data):
    """A copy of a run whose recipe names other data."""
    shutil.copytree(run, place)
    tree = yaml.safe_load((place / "recipe.yaml").read_text())
    tree["data"] |= data
    (place / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return place


@pytest.fixture
def received(made, tmp_path):
    """A run that names a folder of the user that no command has opened, and the folder."""
    run, photos = made
    shutil.copytree(photos, tmp_path / "private")
    return naming(run, tmp_path / "run", name=str(tmp_path / "private")), tmp_path / "private"


def commands(run):
    yield "evaluate", run
    yield "finetune", run, "--epochs", 1, "--out", run.parent / "tuned"
    yield "export", run, "--format", "timm", "--out", run.parent / "timm"
    yield "run", run, "--resume"


def test_no_command_opens_the_data_that_a_received_run_names(received, slimvit_, monkeypatch):
    run, private = received
    monkeypatch.setattr(folders, "files_of", lambda *_, **__: pytest.fail("it was opened"))
    for words in commands(run):
        told = slimvit_(*words, code=1).stderr
        assert told.count("\n") == 1 and told.endswith(f"to open it, add --data {private}\n"), told
    with pytest.raises(SlimvitError, match=f"to open it, add --data {private}"):
        slimvit.export(run, run.parent / "timm", "timm")
    assert not (run.parent / "tuned").exists() and not (run.parent / "timm").exists()


def test_the_root_of_named_data_is_not_opened_either(made, slimvit_, tmp_path):
    run = naming(made[0], tmp_path / "run", name="torch/cifar10", root="/home")
    told = slimvit_("evaluate", run, "--data", "torch/cifar10", code=1).stderr
    assert told.endswith("add --data torch/cifar10 --data-root /home\n")


def test_with_data_the_command_goes_on_and_the_data_is_known(received, slimvit_):
    run, private = received
    slimvit_("evaluate", run, "--data", private)
    slimvit_("evaluate", run)


def test_own_runs_need_no_data(made, slimvit_):
    slimvit_("evaluate", made[0])
    slimvit_("run", made[0], "--resume")


# what a link leads to is carried nowhere


@pytest.fixture
def linked(made, tmp_path):
    """A run with a link to a secret for a picture, and another one to a device."""
    shutil.copytree(made[0], tmp_path / "run")
    (tmp_path / "secret").write_text(SECRET)
    for name, end in (("head_map.png", tmp_path / "secret"), ("mixes.png", "/dev/zero")):
        (tmp_path / "run" / name).unlink(missing_ok=True)
        (tmp_path / "run" / name).symlink_to(end)
    return tmp_path / "run"


def test_no_report_shows_a_linked_picture(linked, slimvit_, tmp_path, monkeypatch):
    for module, name in ((tradeoff_plots, "accuracy_against"), (part_plots, "flops_by_part")):
        monkeypatch.setattr(module, name, lambda *args: args[-1].write_text("<svg/>"))
    told = slimvit_("report", linked, "--out", tmp_path / "report").stderr
    assert "head_map.png: is a link or too large, so it is not shown" in told and "mixes.png: is a link" in told
    assert "Heads and mixes" not in (tmp_path / "report" / "tradeoff.html").read_text()


@pytest.mark.parametrize("what", ["head_map.png", "slim.json", "best"])
def test_no_push_sends_what_a_link_leads_to(linked, what, tmp_path):
    if what == "slim.json":
        (linked / "head_map.png").unlink()
        (linked / what).rename(tmp_path / what)
        (linked / what).symlink_to(tmp_path / what)
    if what == "best":
        (linked / "head_map.png").unlink()
        shutil.copytree(linked, tmp_path / "other", symlinks=True)
        (linked / what).symlink_to(tmp_path / "other")
    (linked / "mixes.png").unlink()
    with pytest.raises(SlimvitError, match=rf"{what}.*is a link, so it is not pushed"):
        upload_contents(linked, PushOptions("me/x", include=("best",) * (what == "best")))


def test_logs_are_copied_as_far_as_they_are_files(tmp_path):
    logs, target = tmp_path / "logs", tmp_path / "copy"
    (logs / "a").mkdir(parents=True)
    (logs / "a" / "events").write_text("loss")
    (tmp_path / "secret").write_text(SECRET)
    for name, end in (("secret", tmp_path / "secret"), ("zero", "/dev/zero"), ("folder", tmp_path), ("none", "x")):
        (logs / name).symlink_to(end)
    os.mkfifo(logs / "pipe")
    with (logs / "huge").open("wb") as file:
        file.truncate(2**40)
    left_out = copy_files(logs, target)
    assert {path.name for path in left_out} == {"secret", "zero", "folder", "none", "pipe", "huge"}
    assert [str(p.relative_to(target)) for p in target.rglob("*")] == ["a", "a/events"]
    with pytest.raises(Unreadable, match="at most 3 are taken"):
        open_regular(logs / "a" / "events", 3)


def test_an_interrupted_run_with_linked_logs_is_refused(received, slimvit_, tmp_path):
    run, _ = received
    (run / "unfinished").mkdir()
    (run / "unfinished" / "logs").symlink_to(tmp_path)
    told = slimvit_("finetune", run, "--data", "digits", "--epochs", 1, "--out", run, "--resume", code=1).stderr
    assert "logs: is a link, and slimvit writes through no link" in told and told.count("\n") == 1
