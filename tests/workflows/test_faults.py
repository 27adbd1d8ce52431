"""Killed, crowded out, refused: an output folder is as before or whole."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors import SafetensorError

import slimvit
from slimvit.cli import main
from slimvit.cli.run import _follow_stdin
from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.config.sweep import Sweep, points_of
from slimvit.io.sweep_folder import Contents, Entry, write_contents
from slimvit.io.weight_file import safetensors_errors
from slimvit.train.checkpoint import Interrupted
from slimvit.train.state import TrainState
from slimvit.utils import lock, output
from slimvit.utils.errors import DiskError, StoreError
from slimvit.utils.files import ASIDE
from slimvit.utils.lock import OLD, locked
from slimvit.utils.output import new_folder
from slimvit.workflows import pruning
from slimvit.workflows.run import run
from slimvit.workflows.sweep import executors

STRESS = pytest.mark.skipif("SLIMVIT_STRESS" not in os.environ, reason="takes minutes; make stress")
HOLDER = """
import sys, time
from pathlib import Path
from slimvit.utils.lock import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def killed(*words):
    program = [sys.executable, str(Path(__file__).with_name("killed.py")), *map(str, words)]
    found = subprocess.run(program, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


ALL = ("save", "prune", "finetune", "sweep", "anew", "timm", "torch-export")


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
@pytest.mark.parametrize(
    ("how", "most", "what"),
    [("SIGKILL", 2, ("save",))]
    + [pytest.param(how, 999, (what,), marks=STRESS) for how in ("SIGKILL", "ENOSPC", "EROFS") for what in ALL]
    + [pytest.param(how, 12, (what,), marks=STRESS) for how in ("SIGINT", "SIGTERM") for what in ALL],
)
def test_stopped_at_every_write(how, most, what, tmp_path):
    assert len(killed(tmp_path / "root", how, most, *what)) == len(what)


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
    with locked(tmp_path / "run"), locked(tmp_path / "run"), new_folder(tmp_path / "run") as partial:
        (partial / "slim.json").write_text("{}")
    assert not lock._held and sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_what_a_killed_process_left_is_put_right_and_nothing_else_touched(tmp_path):
    for name in (f".run.{ASIDE}abc", f".run.{ASIDE}abc{OLD}", f".run2.{ASIDE}abc", ".run.mine", "run3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with locked(tmp_path / "run"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run.mine", f".run2.{ASIDE}abc", "run", "run3"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == [f".run.{ASIDE}abc{OLD}"]


def test_two_renames_where_the_system_cannot_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "exchange", lambda *_: False)
    for text in ("old", "new"):
        with new_folder(tmp_path / "run", force=True) as partial:
            (partial / "slim.json").write_text(text)
    assert (tmp_path / "run" / "slim.json").read_text() == "new" and os.listdir(tmp_path) == ["run"]


def test_inspect_says_that_a_run_is_unfinished(slimvit_, tmp_path):
    (tmp_path / "run" / "unfinished").mkdir(parents=True)
    assert f"go on with: slimvit run {tmp_path / 'run'} --resume" in slimvit_("inspect", tmp_path / "run").stdout


FEW = ("--data", "digits", "--train-images", 16, "--eval-images", 16, "--batch-size", 8)
PRUNE = ("prune", "vit_digits", *FEW, "--calibration-images", 16, "--criterion", "magnitude", "--refit", "none")


@pytest.fixture
def in_a_thread(tmp_path):
    """Another thread has claimed `run` and `run.pt2`."""
    ready, done = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / "run"), locked(tmp_path / "run.pt2"):
            ready.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    yield
    done.set()
    thread.join()


def commands(folder):
    """One of each that writes."""
    (folder / "s.yaml").write_text(
        "base: {model: {name: vit_digits}, data: {name: digits}}\ngrid: {prune.ratio: [0.5]}"
    )
    yield (*PRUNE, "--ratio", 0.5, "--out", folder / "run")
    yield (*PRUNE, "--ratio", 0.5, "--dry-run", "--out", folder / "run")
    yield ("run", "digits_half", "--out", folder / "run", "--resume")
    yield ("sweep", folder / "s.yaml", "--out", folder / "run", "--force")
    yield ("export", "vit_digits", "--data", "digits", "--format", "timm", "--out", folder / "run")
    yield ("export", "vit_digits", "--data", "digits", "--format", "torch-export", "--out", folder / "run.pt2")


def test_the_second_command_is_told_before_anything_long(slimvit_, tmp_path, in_a_thread, monkeypatch):
    monkeypatch.setattr("slimvit.workflows.start.start_run", lambda *_: pytest.fail("it began"))
    for words in commands(tmp_path):
        told = slimvit_(*words, code=1).stderr
        assert told.count("\n") == 1 and f"{words[words.index('--out') + 1]}: another thread of this process is" in told
    told = slimvit_("inspect", tmp_path / "run").stdout
    assert told == f"{tmp_path / 'run'}: another thread of this process is writing to it; so far it holds nothing yet\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run.lock", ".run.pt2.lock", "s.yaml"]


FORKED = """
import os, sys
from pathlib import Path
from slimvit.utils.lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if not child:  # which has let go of the lock by now
        print(os.getpid(), flush=True)
    sys.stdin.read()
    if not child:
        os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_has_no_share_in_the_lock(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stdin is not None
    child = int(parent.stdout.readline())
    assert lock.lock_owner(tmp_path / "run") == f"process {parent.pid}"
    parent.kill()
    parent.wait()
    assert lock.lock_owner(tmp_path / "run") is None
    with locked(tmp_path / "run"):
        os.kill(child, 0)  # it lives
    parent.stdin.close()
    parent.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with new_folder(tmp_path / "run") as partial:
        (partial / "slim.json").write_text("{}")
    assert os.listdir(tmp_path) == ["run"] and "its file system has no locks" in capsys.readouterr().err


def test_a_claim_that_comes_to_nothing_leaves_no_folders(tmp_path):
    with pytest.raises(StoreError), locked(tmp_path / "a" / "b" / "run"):
        raise StoreError("no")
    assert os.listdir(tmp_path) == []


# inspect


def test_inspect_says_how_a_folder_stands(slimvit_, tmp_path):
    out, words = tmp_path / "run", ("inspect", tmp_path / "run", "--json")

    def stands():
        return json.loads(slimvit_(*words).stdout)["folder"]

    (tmp_path / ".run.lock").touch()
    assert stands()["state"] == "nothing" and "only temporary files of a killed process" in stands()["text"]
    slimvit_(*PRUNE, "--ratio", 0.5, "--out", out)
    assert stands()["state"] == "whole" and os.listdir(tmp_path) == ["run"]
    assert slimvit_(*words[:-1]).stdout.endswith(f"\n{out}: a whole run\n")
    out.rename(tmp_path / f".run.{ASIDE}abc{OLD}")
    assert stands()["state"] == "nothing" and "moved its content aside" in stands()["text"]
    assert "in use" in slimvit_(*PRUNE, "--ratio", 0.5, "--out", out, code=1).stderr
    assert stands()["state"] == "whole" and os.listdir(tmp_path) == ["run"]
    (out / f".unfinished.{ASIDE}abc{OLD}").mkdir()
    lock.clean_up(out)
    assert (
        stands()["go_on"] == f"slimvit run {out} --resume" and "the whole run that it will replace" in stands()["text"]
    )


def test_inspect_names_a_damaged_report(slimvit_, tmp_path):
    slimvit_(*PRUNE, "--ratio", 0.5, "--out", tmp_path / "run")
    for text in ("{", "[]", '{"stages": []}'):
        (tmp_path / "run" / "report.json").write_text(text)
        status = json.loads(slimvit_("inspect", tmp_path / "run", "--json").stdout)["folder"]
        assert status["state"] == "damaged" and "a run whose report.json is damaged (" in status["text"]
        told = slimvit_("report", tmp_path / "run", code=1).stderr
        assert told.count("\n") == 1 and "report.json" in told and len(told) <= 410


def test_inspect_counts_the_points_of_a_sweep(slimvit_, tmp_path):
    write_contents(tmp_path, Contents(points=[Entry(id=i, name=i, error=e) for i, e in (("a", None), ("b", "no"))]))
    (tmp_path / "points" / "a").mkdir(parents=True)
    (tmp_path / "points" / "a" / "report.json").write_text('{"stages": [{}]}')
    assert (
        "a sweep with 1 of 2 points done, 1 failed; repeat its slimvit sweep command"
        in slimvit_("inspect", tmp_path).stdout
    )
    (tmp_path / "points" / "a" / "report.json").write_text("{")
    assert "0 of 2 points done, 1 failed, 1 with a damaged report.json" in slimvit_("inspect", tmp_path).stdout
    (tmp_path / "points.json").write_text("{")
    told = slimvit_("inspect", tmp_path, code=1).stderr
    assert "damaged" in told and told.count("\n") == 1


# a process that loads images dies


@pytest.fixture
def dying(monkeypatch):
    """Once armed, the next process that is asked for images is killed, as a system does that is out of memory."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Loader

    armed = threading.Event()
    real = Loader._next_data

    def next_data(self):
        if armed.is_set():
            armed.clear()
            os.kill(self._workers[0].pid, signal.SIGKILL)
            time.sleep(10)  # torch ends it when it learns of the death
        return real(self)

    monkeypatch.setattr(Loader, "_next_data", next_data)
    return armed


def arming(armed, real, when=lambda *_: True):
    def call(*args):
        if when(*args):
            armed.set()
        return real(*args)

    return call


DEAD = "Error: --workers 2: a process that loads images was killed; mostly that is a machine out of memory: give fewer"


def test_a_dead_worker_in_evaluate_and_in_the_scores_of_prune(slimvit_, dying, tmp_path, monkeypatch):
    dying.set()
    told = slimvit_("evaluate", "vit_digits", *FEW, "--workers", 2, code=1).stderr
    assert told == f"{DEAD} workers, or 0\n"
    monkeypatch.setattr(pruning, "score_parts", arming(dying, pruning.score_parts))
    words = ("prune", "vit_digits", *FEW, "--calibration-images", 16, "--ratio", 0.5, "--workers", 2)
    told = slimvit_(*words, "--out", tmp_path / "run", code=1).stderr
    assert told == f"{DEAD} workers, or 0\n" and os.listdir(tmp_path) == []


def test_a_dead_worker_in_a_training_keeps_its_state(slimvit_, dying, tmp_path, monkeypatch):
    update = arming(dying, TrainState.update, lambda state: state.updates == 2)
    monkeypatch.setattr(TrainState, "update", update)
    out = tmp_path / "run"
    words = (*PRUNE, "--ratio", 0.5, "--finetune-epochs", 2, "--workers", 2, "--out", out)
    told = slimvit_(*words, code=1).stderr.splitlines()[-1]
    go_on = f"slimvit run {out} --resume --workers 1"
    assert told == f"{DEAD} workers, or 0. The training's state is kept; then go on with: {go_on}"
    assert json.loads(slimvit_("inspect", out, "--json").stdout)["folder"]["state"] == "unfinished"
    slimvit_(*go_on.split()[1:], "--workers", 0)
    assert sorted(os.listdir(tmp_path)) == ["run"] and not (out / "unfinished").exists()


# --out is a link


def test_a_link_to_a_folder_is_written_through(slimvit_, tmp_path):
    (tmp_path / "disk").mkdir()
    out = tmp_path / "run"
    for words in list(commands(tmp_path))[:2]:
        out.symlink_to(tmp_path / "disk")
        slimvit_(*words)
        assert out.is_symlink() and os.listdir(tmp_path / "disk")
        shutil.rmtree(tmp_path / "disk")
        (tmp_path / "disk").mkdir()
        out.unlink()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    slimvit.save(slimvit.load("vit_digits"), tmp_path / "run")
    assert (tmp_path / "disk" / "slim.json").is_file() and sorted(os.listdir(tmp_path)) == ["disk", "run", "s.yaml"]


@pytest.mark.parametrize("to", ["a file", "nothing"])
def test_another_link_is_refused_at_once(slimvit_, tmp_path, to, monkeypatch):
    monkeypatch.setattr("slimvit.workflows.start.start_run", lambda *_: pytest.fail("it began"))
    target = tmp_path / "target"
    for words in commands(tmp_path):
        out = words[words.index("--out") + 1]
        out.symlink_to(target)
        if to == "a file":
            target.write_text("mine")
        told = slimvit_(*words, code=1).stderr
        assert told.count("\n") == 1 and f"{out}: is a link" in told
        assert out.is_symlink() and (to == "nothing" or target.read_text() == "mine")
        out.unlink()


# a disk that is too small


@contextmanager
def limited(size):
    """No file may grow over `size` bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files(slimvit_, tmp_path):
    prune, dry, _, sweep, timm, program = commands(tmp_path)
    tuned = (*PRUNE, "--ratio", 0.5, "--finetune-epochs", 1, "--out", tmp_path / "run")
    copy = ("recipes", "copy", "digits_half", tmp_path / "c.yaml")
    for words, size in [(prune, 20_000), (dry, 100), (tuned, 2_000_000), (timm, 20_000), (program, 20_000), (copy, 9)]:
        with limited(size):
            told = slimvit_(*words, code=1).stderr.splitlines()[-1]
        assert "cannot be written: File too large" in told and len(told) < 600
        if words is tuned:
            assert "last.pt" in told and "go on with: slimvit run" in told
        else:
            assert os.listdir(tmp_path) == ["s.yaml"]
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_every_write_error_is_one_line(number, tmp_path):
    quoted = f"I/O error: {os.strerror(number)} (os error {number})"
    for error in (OSError(number, os.strerror(number)), SafetensorError(f"Error while serializing: {quoted}")):
        with pytest.raises(DiskError) as caught, new_folder(tmp_path / "run"), safetensors_errors():
            raise error
        full = number in (errno.ENOSPC, errno.EDQUOT)
        assert ("the disk is full" if full else f"cannot be written: {os.strerror(number)}") in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_output_that_cannot_be_written_is_one_line():
    for words in (["--help"], ["recipes", "list"]):
        with open("/dev/full", "w") as full:
            run = subprocess.run([sys.executable, "-m", "slimvit", *words], stdout=full, stderr=-1, text=True)
        assert (run.returncode, run.stderr) == (
            1, "Error: the output cannot be written: No space left on device\n",
        )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "x" * 5000), ("recipes", "check", "x" * 5000), ("x" * 5000,), ("report", "x" * 5000),
        ("inspect", "vit_digits", "--seed", "9" * 5000), ("predict", "vit_digits", "x" * 5000),
        ("evaluate", "vit_digits", "--data", "x" * 5000), ("inspect", "vit_digits", "--weights", "x" * 5000),
        (*PRUNE, "--ratio", 0.5, "--out", "x" * 5000), (*PRUNE, "--ratio", "1" * 300), ("sweep", "/x" * 3000),
    ],
)  # fmt: skip
def test_names_and_numbers_that_are_too_long_are_one_short_line(slimvit_, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="slimvit")
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()[-1]) <= 410 and os.listdir(tmp_path) == []


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of so many MiB at `disk`, or change the one that is there."""
    folder, made = tmp_path / "disk", []

    def mount(options):
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root may mount a small file system, and this is Linux's way to do it")
        folder.mkdir(exist_ok=True)
        options = f"remount,{options}" if made else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        made.append(folder)
        return folder

    yield mount
    if made:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(slimvit_, disk):
    folder = disk("size=1m")
    for words in [
        (*PRUNE, "--ratio", 0.25, "--out", folder / "run"),
        ("export", "vit_digits", "--data", "digits", "--format", "timm", "--eval-images", 16, "--out", folder / "run"),
    ]:
        told = slimvit_(*words, code=1).stderr.splitlines()[-1]
        assert f"{folder / 'run'}: the disk is full; nothing was written" in told and os.listdir(folder) == []
    disk("ro")
    for words in commands(folder.parent):
        words = [folder / word.name if isinstance(word, Path) and word.stem == "run" else word for word in words]
        told = slimvit_(*words, code=1).stderr
        assert f"{folder} is not writable; name another folder" in told and told.count("\n") == 1


def test_a_disk_that_is_full_in_the_middle_of_a_training(slimvit_, disk):
    out = disk("size=6m") / "run"
    words = (*PRUNE, "--ratio", 0.25, "--finetune-epochs", 1, "--out", out)
    told = slimvit_(*words, code=1).stderr.splitlines()[-1]
    assert "last.pt: the disk is full" in told and told.count("slimvit run") == 1
    go_on = told.partition("go on with: slimvit ")[2].split()
    assert json.loads(slimvit_("inspect", out, "--json").stdout)["folder"]["go_on"].split()[1:] == go_on
    disk("size=64m")
    slimvit_(*go_on)
    assert os.listdir(out.parent) == ["run"] and (out / "report.json").is_file()


# runs of a sweep that is gone


def test_a_run_of_a_sweep_that_is_gone_saves_and_ends(tmp_path, monkeypatch):
    held, leash = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(held))
    follower = threading.Thread(target=_follow_stdin)
    follower.start()
    real = TrainState.update

    def update(state):
        real(state)
        if state.updates == 3:
            os.close(leash)
            follower.join()

    monkeypatch.setattr(TrainState, "update", update)
    tree = {"model": {"name": "vit_digits"}, "data": {"name": "digits", "train_images": 16, "batch_size": 8}}
    tree["data"] |= {"eval_images": 16}
    recipe = Recipe.parse(tree | {"finetune": {"epochs": 3, "distill": False}}, "test")
    with pytest.raises(Interrupted, match="stopped after epoch 1 of 3 and 1 of the next 2 steps; the state is saved"):
        run(recipe, Options(out=tmp_path / "run", device="cpu"))
    assert (tmp_path / "run" / "unfinished" / "last.pt").is_file()
    sys.stdin.close()


@STRESS
def test_the_runs_of_a_killed_sweep_save_and_end(slimvit_, tmp_path):
    data = {"name": "digits", "train_images": 64, "batch_size": 8}
    base = {"model": {"name": "vit_digits"}, "data": data, "finetune": {"epochs": 500, "distill": False}}
    (tmp_path / "s.yaml").write_text(json.dumps({"base": base, "grid": {"data.eval_images": [15, 16]}}))
    out = tmp_path / "sweep"
    words = ["sweep", str(tmp_path / "s.yaml"), "--device", "cpu", "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "slimvit", *words], stderr=subprocess.DEVNULL)
    points = [out / "points" / point.id for point in points_of(Sweep.read(tmp_path / "s.yaml"))]
    while not all((point / "unfinished" / "history.csv").is_file() for point in points):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    while any(lock.lock_owner(point) for point in points):
        time.sleep(0.1)
    for point in points:
        told = (out / "failed" / f"{point.name}.txt").read_text()
        assert told.splitlines()[-1].endswith(
            f"the state is saved. Go on with: slimvit run {point} --resume --device cpu"
        )
        assert (point / "unfinished" / "last.pt").is_file()
    assert f"{out}: a sweep with 0 of 2 points done" in slimvit_("inspect", out).stdout


def test_stopping_a_crew_ends_its_runs(tmp_path, monkeypatch):
    script = "import sys; print('Error: begun', file=sys.stderr, flush=True); sys.stdin.read(); sys.exit(130)"
    monkeypatch.setattr(executors, "_command", lambda *_: [sys.executable, "-c", script])
    tree = {"model": {"name": "vit_digits"}, "data": {"name": "digits"}}
    crew_ = executors.ProcessExecutor(2)
    tasks = [
        executors.Task(Recipe.parse(tree, "test"), Options(out=tmp_path / i), tmp_path / f"{i}.txt") for i in "abc"
    ]
    futures = [crew_.submit(task) for task in tasks]
    while not all(t.log_file.is_file() and t.log_file.read_text() for t in tasks[:2]):
        assert not futures[0].done()
    crew_.stop()
    assert [f.result() for f in futures[:2]] == ["begun"] * 2 and futures[2].cancelled()
