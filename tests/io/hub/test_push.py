"""slimvit push: what arrives, what is refused before anything is sent, what is replaced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import slimvit
from slimvit.models.insert_dense import insert_dense_attention
from slimvit.models.registry import plan_of
from slimvit.prune.surgery import prune_model

Invoke = Callable[..., Any]
WRITES = ("POST", "PUT")


def writes(hub: Any) -> list[str]:
    return [asked for asked in hub.asked if asked.startswith(WRITES)]


def one_line(result: Any) -> str:
    """The error that a command ended with."""
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: "), result.stderr
    return lines[-1]


def test_a_run_arrives_whole_and_in_one_commit(hub: Any, run: Path, slimvit_: Invoke) -> None:
    result = slimvit_("push", run, "me/half", "--private", "--license", "mit", "--message", "first")
    repo = hub.repos["me/half"]
    assert repo.private and repo.messages[1:] == ["first"]
    sent = {path: content for path, content in repo.files.items() if path not in (".gitattributes", "README.md")}
    assert sent == {path.name: path.read_bytes() for path in run.iterdir()}
    assert b"license: mit" in repo.files["README.md"]
    assert "%|" not in result.stderr  # no progress bars where nobody watches
    assert "hf-hub:me/half" in result.stdout and repo.branches["main"] in result.stdout
    loaded, wanted = slimvit.load("hf-hub:me/half"), slimvit.load(run)
    assert all(torch.equal(v, wanted.state_dict()[k]) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("dense", [None, "layer"])
def test_there_and_back_bit_for_bit(
    family: str, dense: str | None, hub: Any, request: Any, images: Any, slimvit_: Invoke, tmp_path: Path
) -> None:
    model = request.getfixturevalue(family)()
    kept = [[0, 1] if b.heads > 2 else [0] for b in plan_of(model).blocks]
    model = prune_model(model, plan_of(model).keeping(heads=kept))
    model = model if dense is None else insert_dense_attention(model, dense, "normal")
    slimvit.save(model, tmp_path / "saved", class_names=("a", "b", "c", "d", "e"))
    result = slimvit_("push", tmp_path / "saved", "me/model", "--json")
    found = slimvit.load(f"hf-hub:me/model@{json.loads(result.stdout)['commit']}")
    assert found.state_dict().keys() == model.state_dict().keys() and plan_of(found) == plan_of(model)
    assert torch.equal(found(images(model)), model.eval()(images(model)))
    assert found.class_names == ("a", "b", "c", "d", "e")


@pytest.mark.skipif("SLIMVIT_STRESS" not in os.environ, reason="starts a process: make stress")
def test_in_a_process_of_its_own_with_the_environment_alone(hub: Any, environment: Any, run: Path) -> None:
    script = (
        "import sys, slimvit; from slimvit.cli import main; main(['push', *sys.argv[1:]], standalone_mode=False);"
        "print(slimvit.load('hf-hub:me/half').num_classes)"
    )
    env = os.environ | environment
    done = subprocess.run([sys.executable, "-c", script, run, "me/half"], env=env, capture_output=True, text=True)
    assert done.stdout.endswith("\n10\n") and hub.repos["me/half"].files, done.stderr


def test_a_dry_run_asks_nobody(hub: Any, run: Path, slimvit_: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = slimvit_("push", run, "me/half", "--dry-run")
    assert hub.asked == []
    assert all(path.name in result.stdout for path in run.iterdir()) and "library_name: slimvit" in result.stdout
    told = json.loads(slimvit_("push", run, "me/half", "--dry-run", "--json").stdout)
    assert told["files"]["model.safetensors"] == (run / "model.safetensors").stat().st_size


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return shutil.copytree(run, tmp_path / "copy")


def test_what_is_no_part_of_a_run_stays_here(hub: Any, copy: Path, slimvit_: Invoke) -> None:
    (copy / "secret.txt").write_text("x")
    (copy / "logs").mkdir()
    for folder in ("best", "original"):
        slimvit.save(slimvit.load(copy), copy / folder)
    result = slimvit_("push", copy, "me/half", "--include", "original")
    files = set(hub.repos["me/half"].files)
    assert "original/model.safetensors" in files and not {f for f in files if f.startswith(("best", "logs", "secret"))}
    assert "not uploaded: best/, logs/, secret.txt" in result.stderr
    assert plan_of(slimvit.load("hf-hub:me/half/original")).kept_heads == 18
    told = one_line(slimvit_("evaluate", "hf-hub:me/half/best", "--data", "digits", code=1))
    assert "hf-hub:me/half/best: holds no slim.json" in told


def test_paths_of_this_machine_are_told_of(copy: Path, slimvit_: Invoke) -> None:
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace("  root: null\n", "  root: /home/me/private\n"))
    assert "names local paths: /home/me/private" in slimvit_("push", copy, "me/x", "--dry-run").stderr


def test_an_earlier_push_is_replaced_with_force_alone(hub: Any, copy: Path, slimvit_: Invoke) -> None:
    slimvit_("push", copy, "me/half")
    before, sent = dict(hub.repos["me/half"].files), len(writes(hub))
    told = one_line(slimvit_("push", copy, "me/half", code=1))
    assert "me/half: holds an earlier push; add --force to replace it" in told and len(writes(hub)) == sent
    hub.put("me/half", before | {"mine.txt": b"kept"})
    (copy / "stages.png").unlink()
    result = slimvit_("push", copy, "me/half", "--force")
    after = hub.repos["me/half"].files
    assert before.keys() - after.keys() == {"stages.png"} and after["mine.txt"] == b"kept"
    assert "mine.txt stay there as they are" in result.stderr


def test_an_unchanged_run_may_be_pushed_again(hub: Any, run: Path, slimvit_: Invoke) -> None:
    slimvit_("push", run, "me/half")
    before = dict(hub.repos["me/half"].branches)
    assert before["main"] in slimvit_("push", run, "me/half", "--force").stdout
    assert hub.repos["me/half"].branches == before  # no empty commit


def test_somebody_elses_files_are_left_alone(hub: Any, run: Path, slimvit_: Invoke) -> None:
    hub.put("me/bert", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    for force in ([], ["--force"]):
        told = one_line(slimvit_("push", run, "me/bert", *force, code=1))
        assert "me/bert: holds files that slimvit did not write (config.json, pytorch_model.bin)" in told
    assert not writes(hub)
    slimvit_("push", run, "me/bert", "--revision", "slim")  # beside them, on a branch of its own
    assert set(hub.repos["me/bert"].files) == {"config.json", "pytorch_model.bin"}
    assert slimvit.load("hf-hub:me/bert@slim").num_classes == 10


def test_a_card_of_the_users_own(hub: Any, run: Path, slimvit_: Invoke) -> None:
    hub.put("me/half", {"README.md": b"mine"})
    assert "--keep-card" in one_line(slimvit_("push", run, "me/half", code=1))
    slimvit_("push", run, "me/half", "--keep-card")
    assert hub.repos["me/half"].files["README.md"] == b"mine"
    slimvit_("push", run, "me/half", "--keep-card", "--force")
    assert hub.repos["me/half"].files["README.md"] == b"mine"
    slimvit_("push", run, "me/half", "--force")
    assert hub.repos["me/half"].files["README.md"] != b"mine"


def test_a_branch_of_a_new_repository(hub: Any, run: Path, slimvit_: Invoke) -> None:
    result = slimvit_("push", run, "me/half", "--revision", "v1")
    assert set(hub.repos["me/half"].files) == {".gitattributes"}
    assert "hf-hub:me/half@v1" in result.stdout and slimvit.load("hf-hub:me/half@v1").num_classes == 10


def no_login(hub: Any, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("HF_TOKEN")


def no_network(hub: Any, patch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def go_offline(hub: Any, patch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def taken_meanwhile(hub: Any, patch: pytest.MonkeyPatch) -> None:
    hub.put("me/half", {})
    hub.before["/commit/"] = lambda: hub.put("me/half", {"notes.txt": b"somebody's"})


REFUSED = {
    "no login": (no_login, "nobody is logged in to the Hub; log in first: hf auth login, or set HF_TOKEN"),
    "bad token": (lambda hub, patch: patch.setenv("HF_TOKEN", "nonsense"), "the Hub does not know your token"),
    "may only read": (lambda hub, patch: patch.setenv("HF_TOKEN", "reader"), "your token may only read"),
    "no network": (no_network, "the Hub cannot be reached (ConnectError); check the network"),
    "offline": (go_offline, "the Hub is not asked in offline mode (HF_HUB_OFFLINE=1)"),
    "trouble": (lambda hub, patch: hub.broken.update({"whoami": 503}), "the Hub has a server error (503)"),
    "changed meanwhile": (taken_meanwhile, "somebody else changed it in the meantime"),
    "upload refused": (lambda hub, patch: hub.broken.update({"/lfs/": 403}), "your token lacks permission (403)"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_in_one_line(why: str, hub: Any, run: Path, slimvit_: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, told = REFUSED[why]
    spoil(hub, monkeypatch)
    line = one_line(slimvit_("push", run, "me/half", code=1))
    assert line.startswith("Error: me/half: ") and told in line
    assert "me/half" not in hub.repos or "slim.json" not in hub.repos["me/half"].files


def test_somebody_elses_name(hub: Any, run: Path, slimvit_: Invoke) -> None:
    told = one_line(slimvit_("push", run, "you/half", code=1))
    assert "you/half: your token lacks permission (403)" in told and hub.repos == {}


def test_public_is_not_made_private_silently(hub: Any, run: Path, slimvit_: Invoke) -> None:
    hub.put("me/half", {})
    assert "me/half: is public already" in one_line(slimvit_("push", run, "me/half", "--private", code=1))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["half"], "'half' is not of the form user/name; a repository on the Hub is named user/name"),
        (["me/half/more"], "'me/half/more' is not of the form user/name"),
        (["me/-half"], "me/-half"),
        (["../etc"], "../etc"),
        (["me/half@v1"], "name a branch with --revision"),
        (["me/half", "--revision", "a..b"], "--revision a..b: is no branch"),
        (["me/half", "--license", "My Own\n"], "--license My Own"),
        (["me/half", "--base-model", "x"], "'x' is not of the form user/name"),
        (["me/half", "--include", "best"], "holds no best/; leave --include best out"),
    ],
)
def test_bad_words(words: list[str], told: str, hub: Any, run: Path, slimvit_: Invoke) -> None:
    assert told in slimvit_("push", run, *words, code=1).stderr
    assert hub.asked == []


def damaged(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "unfinished").mkdir(), "--resume, and push it then"),
        (lambda folder: (folder / "slim.json").unlink(), "no folder of a finished run"),
        (damaged, "damaged: its checksum is not the one in slim.json"),
        (lambda folder: (folder / "report.json").write_text("{"), "report.json: not a readable report"),
    ],
    ids=["unfinished", "no run", "damaged", "damaged report"],
)
def test_what_is_no_finished_run(spoil: Any, told: str, hub: Any, copy: Path, slimvit_: Invoke) -> None:
    spoil(copy)
    assert told in one_line(slimvit_("push", copy, "me/half", code=1))
    assert hub.asked == []


def test_what_lies_on_the_hub_already(hub: Any, slimvit_: Invoke) -> None:
    assert "lies on the Hub already" in one_line(slimvit_("push", "hf-hub:me/half", "me/other", code=1))
