"""Killed, crowded out, refused: an output folder is as before or whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimvit import claim, folders
from slimvit.claim import ASIDE, OLD, claimed
from slimvit.errors import StoreError
from slimvit.folders import new_folder

STRESS = pytest.mark.skipif("SLIMVIT_STRESS" not in os.environ, reason="takes minutes; make stress")
HOLDER = """
import sys, time
from pathlib import Path
from slimvit.claim import claimed
with claimed(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def killed(*words):
    program = [sys.executable, str(Path(__file__).with_name("killed.py")), *map(str, words)]
    found = subprocess.run(program, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
@pytest.mark.parametrize(
    ("what", "every"),
    [("save", 3), pytest.param("save", 1, marks=STRESS), pytest.param("prune", 1, marks=STRESS)],
)
def test_killed_at_every_write(what, every, tmp_path):
    assert killed(tmp_path / "root", what, every) > 0  # how many depends on the file system


def test_one_process_at_a_time(tmp_path):
    out = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(StoreError, match=f"run: process {other.pid} is writing to it"), new_folder(out):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with new_folder(out) as partial:  # a lock ends with its process
        (partial / "slim.json").write_text("{}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_claim_inside_a_claim(tmp_path):
    with claimed(tmp_path / "run"), claimed(tmp_path / "run"), new_folder(tmp_path / "run") as partial:
        (partial / "slim.json").write_text("{}")
    assert not claim._held and sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_what_a_killed_process_left_is_put_right_and_nothing_else_touched(tmp_path):
    for name in (f".run.{ASIDE}abc", f".run.{ASIDE}abc{OLD}", f".run2.{ASIDE}abc", ".run.mine", "run3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with claimed(tmp_path / "run"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run.mine", f".run2.{ASIDE}abc", "run", "run3"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == [f".run.{ASIDE}abc{OLD}"]


def test_two_renames_where_the_system_cannot_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "exchange", lambda *_: False)
    for text in ("old", "new"):
        with new_folder(tmp_path / "run", force=True) as partial:
            (partial / "slim.json").write_text(text)
    assert (tmp_path / "run" / "slim.json").read_text() == "new" and os.listdir(tmp_path) == ["run"]


def test_inspect_says_that_a_run_is_unfinished(slimvit_, tmp_path):
    (tmp_path / "run" / "unfinished").mkdir(parents=True)
    assert f"go on with: slimvit run {tmp_path / 'run'} --resume" in slimvit_("inspect", tmp_path / "run").stdout
