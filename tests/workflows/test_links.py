"""Links under the names that slimvit writes: what they point to never changes.

The names are not listed here. They are traced: every file opened for writing, every folder made and every new name of a
renamed one, apart from random names, which nobody can plant a link under.
"""

import itertools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from slimvit.cli import main
from slimvit.io.sweep_folder import Contents, Entry, write_contents
from slimvit.report.compare import part_plots, tradeoff_plots
from slimvit.train.checkpoint import Interrupted
from slimvit.utils import output
from slimvit.utils.distributed import Engine

RANDOM = "rrandomm"
FEW = ("--data", "digits", "--train-images", 16, "--eval-images", 16, "--batch-size", 8)
CUT = ("--calibration-images", 16, "--criterion", "magnitude", "--refit", "none", "--ratio", 0.5)
POINTS = {
    "base": {
        "model": {"name": "vit_digits"},
        "data": {"name": "digits", "train_images": 16, "eval_images": 16, "batch_size": 8},
        "prune": {"calibration_images": 16, "criterion": "magnitude", "ratio": 0.5},
        "refit": {"target": "none"},
    },
    "points": [
        {"name": "good"},
        {"name": "bad", "change": {"prune.ratio": None, "prune.plan": "nowhere.json"}},
    ],
}
COMMANDS = {
    "prune": ("prune", "vit_digits", *FEW, *CUT, "--finetune-epochs", 1, "--out", "run"),
    "finetune": ("finetune", "made", "--epochs", 1, "--out", "run"),
    "resume": ("run", "begun", "--resume"),
    "sweep": ("sweep", "sweep.yaml", "--out", "run"),
    "sweep again": ("sweep", "sweep.yaml", "--out", "swept"),
    "timm": ("export", "vit_digits", *FEW[:2], "--eval-images", 16, "--format", "timm", "--out", "run"),
    "torch-export": ("export", "made", "--format", "torch-export", "--out", "run.pt2"),
    "report": ("report", "made", "--out", "run"),
    "bench": ("bench", "made", "--device", "cpu", "--rounds", 20, "--batches", 1),
    "copy": ("recipes", "copy", "digits_half", "."),
}
SLOW = pytest.param(
    "torch-export", marks=pytest.mark.skipif("SLIMVIT_STRESS" not in os.environ, reason="takes seconds; make stress")
)
KINDS = ("file", "none", "folder")
"""What a link leads to: a file of the user, a name without a file, a folder of the user."""
FAILS = {"sweep", "sweep again"}
"""What ends with exit code 1 by itself: one of its points fails."""


def interrupted(*_: object) -> None:
    raise Interrupted("stopped")


def done(words: tuple[object, ...]) -> tuple[int, str]:
    """Exit code and stderr of a command; bugs raise."""
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="slimvit")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def refused(told: str) -> bool:
    """Whether the last line, and no other, tells an error."""
    errors = [line.startswith("Error: ") for line in told.splitlines()]
    return errors[-1:] == [True] and errors.count(True) == 1


class Trace:
    """The paths that this process writes while it is on."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.found: dict[Path, None] = {}

    def __call__(self, event: str, args: tuple) -> None:
        if self.root is None:
            return
        opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if opened or event == "os.mkdir":
            self.add(args[0])
        elif event == "os.rename":
            self.add(args[1])

    def add(self, path: object) -> None:
        assert self.root is not None
        if isinstance(path, str | bytes | os.PathLike):
            whole = Path(os.path.abspath(os.fsdecode(path)))
            if whole != self.root and whole.is_relative_to(self.root) and RANDOM not in str(whole):
                self.found[whole.relative_to(self.root)] = None


TRACE = Trace()
sys.addaudithook(TRACE)  # for good: Python takes no hook back


@contextmanager
def traced(root: Path) -> Iterator[dict[Path, None]]:
    """The predictable names that are written below `root` in the block."""
    TRACE.root, TRACE.found = root, {}
    try:
        yield TRACE.found
    finally:
        TRACE.root = None


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random names can be told from others, pictures are empty, and turns of the clock are short."""
    numbers = itertools.count()
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: (f"{RANDOM}{n}" for n in numbers))
    monkeypatch.setattr(secrets, "token_hex", lambda _: f"{RANDOM}{next(numbers)}")
    for module, name in ((tradeoff_plots, "accuracy_against"), (part_plots, "flops_by_part")):
        monkeypatch.setattr(module, name, lambda *args: args[-1].write_text("<svg/>"))
    real = output.exchange
    monkeypatch.setattr(output, "exchange", lambda one, other: TRACE.root and TRACE.add(other) or real(one, other))


@pytest.fixture(scope="module")
def template(slimvit_, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, an interrupted one, and a sweep file."""
    root = tmp_path_factory.mktemp("template")
    slimvit_("prune", "vit_digits", *FEW, *CUT, "--out", root / "made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "log", interrupted)
        slimvit_(*COMMANDS["prune"][:-1], root / "begun", code=Interrupted.exit_code)
    (root / "sweep.yaml").write_text(yaml.safe_dump(POINTS))
    (root / "swept").mkdir()
    write_contents(root / "swept", Contents(points=[Entry(id=name, name=name) for name in ("good", "bad")]))
    return root


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a function that copies the template into the working folder."""

    def fresh() -> Path:
        monkeypatch.chdir(tmp_path)
        root = tmp_path / "root"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root, dirs_exist_ok=True)
        monkeypatch.chdir(root)
        return root

    yield fresh


def plant(root: Path, path: Path, end: Path) -> None:
    """Put a link in the place of whatever is there."""
    link = root / path
    if link.is_symlink() or not link.is_dir():
        link.unlink(missing_ok=True)
    shutil.rmtree(link, ignore_errors=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(end)


@pytest.mark.parametrize("name", [*(n for n in COMMANDS if n != "torch-export"), SLOW])
def test_no_link_is_written_through(name, place, slimvit_, tmp_path, quick_bench):
    """Each name leads to a file, to nothing or to a folder; whatever the command does, that stays as it is."""
    root = place()
    with traced(root) as found:
        slimvit_(*COMMANDS[name], code=int(name in FAILS))
    names = sorted(found, key=str)
    assert names, "nothing was traced"
    victims = tmp_path / "victims"
    for i, path in enumerate(names):
        for kind in KINDS if "SLIMVIT_STRESS" in os.environ else (KINDS[i % len(KINDS)],):
            root = place()
            shutil.rmtree(victims, ignore_errors=True)
            (victims / "folder").mkdir(parents=True)
            for file in (victims / "file", victims / "folder" / "file"):
                file.write_text("mine")
            plant(root, path, victims / kind)
            code, told = done(COMMANDS[name])
            left = {str(p.relative_to(victims)): p.read_text() for p in victims.rglob("*") if p.is_file()}
            assert left == {"file": "mine", "folder/file": "mine"}, (path, kind)
            assert code == int(name in FAILS) or (code == 1 and refused(told)), (path, kind, told)
