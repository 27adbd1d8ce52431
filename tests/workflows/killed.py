"""Run by test_faults.py: stop a writer at every point at which it touches the disk, and look at what it leaves.

    python killed.py FOLDER HOW MOST WHAT...

WHAT: save, prune, finetune, sweep, anew (a sweep in the place of another), timm, torch-export. HOW: a signal (SIGKILL)
by which a forked child ends itself at the n-th write (a file opened for writing, a folder made, something renamed or
removed), or an error (ENOSPC, EROFS) that this write and all after it meet. At MOST so many points are tried of each.
Then `slimvit inspect` in words, nothing half-written, and the same command again, or the one that goes on, ends with
the bytes of one that was never stopped. Prints how many points were tried of how many.
"""

import errno
import os
import re
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import torch
import yaml
from click.testing import CliRunner
from safetensors import SafetensorError

import slimvit
from slimvit import create_model
from slimvit.cli import main
from slimvit.io import saved_model
from slimvit.io.status import folder_status
from slimvit.report.compare import part_plots, tradeoff_plots
from slimvit.report.run import head_map, plots
from slimvit.utils import output
from slimvit.workflows import cache

torch.set_num_threads(1)
ROOT, HOW, MOST = Path(sys.argv[1]).absolute(), sys.argv[2], int(sys.argv[3])
OUT = ROOT / "run"
OLD, NEW = (
    create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, num_classes=n, args={"depth": 1})
    for n in (2, 3)
)
FEW = "--train-images 16 --eval-images 16 --batch-size 8"
SWEEP = {
    "base": {
        "model": {"name": "vit_digits"},
        "data": {"name": "digits", "train_images": 16, "eval_images": 16, "batch_size": 8},
        "prune": {"calibration_images": 16, "criterion": "magnitude"},
        "refit": {"target": "none"},
    },
    "points": [
        {"name": "cut", "change": {"prune.ratio": 0.5}},
        {"name": "tuned", "change": {"prune.ratio": 0.25, "finetune.epochs": 1}},
    ],
}
FILE = ROOT.with_name("sweep.yaml")
CUT = ROOT.with_name("cut")
COMMANDS = {
    "prune": f"prune vit_digits --data digits {FEW} --ratio 0.5 --calibration-images 16 --out {OUT} --force",
    "finetune": f"finetune {CUT} {FEW} --epochs 2 --save-minutes 0 --out {OUT} --force",
    "sweep": f"sweep {FILE} --out {OUT}",
    "anew": f"sweep {FILE} --out {OUT} --force",
    "timm": f"export vit_digits --format timm --data digits --eval-images 16 --out {OUT} --force",
    "torch-export": f"export vit_digits --format torch-export --data digits --eval-images 16 --out {OUT}.pt2 --force",
}
ERROR = getattr(errno, HOW, None)
ALLOWED = ("os.remove", "os.rmdir", "shutil.rmtree") if HOW == "ENOSPC" else ()
"""What a full disk lets pass."""


class Points:
    """Counts the writes of a process, and stops it from number ``last`` on."""

    def __init__(self):
        self.last, self.seen, self.counts = None, 0, False

    def __call__(self, kind, path):
        if not self.counts or not str(path).startswith(str(ROOT)) or kind in ALLOWED:
            return
        self.seen += 1
        if self.last is None or self.seen < self.last:
            return
        if ERROR is not None:
            raise OSError(ERROR, os.strerror(ERROR))
        if self.seen == self.last:
            os.kill(os.getpid(), getattr(signal, HOW))

    def hook(self, event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            beneath = isinstance(args[-1], int) and args[-1] >= 0 and event in ("os.remove", "os.rmdir")
            self(event, f"{os.readlink(f'/proc/self/fd/{args[-1]}')}/{args[0]}" if beneath else args[0])

    def watch(self):
        """What writes by other ways than Python's is watched where it is called: safetensors, and the exchange."""
        sys.addaudithook(self.hook)
        for module in (saved_model, cache):
            module.save_file = self.safetensors(module.save_file)
        exchange = output.exchange
        output.exchange = lambda one, other: self("exchange", one) or exchange(one, other)

    def safetensors(self, real):
        def save_file(tensors, path, **more):
            try:
                self("safetensors", path)
            except OSError as error:
                raise SafetensorError(
                    f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                ) from None
            real(tensors, path, **more)
            self("safetensors", path)  # written, but not told of

        return save_file


POINTS = Points()


def write(what, words=None):
    if what == "save" and words is None:
        slimvit.save(NEW, OUT, force=True)
    else:
        return main((words or COMMANDS[what]).split(), standalone_mode=False)
    return 0


def child(what, last):
    """Do it in another process, stopped at write ``last``: how it ended, and what it said."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        with os.fdopen(told) as file:
            said = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, said
    os.close(told)
    code, line = 0, ""
    POINTS.last, POINTS.seen, POINTS.counts = last, 0, True
    try:
        code = write(what) or 0
        line = "points failed" * code
    except (click.ClickException, slimvit.SlimvitError) as error:
        code, line = 1, str(error)
    except BaseException as error:
        code, line = (1 if HOW == "SIGINT" else 2), f"{type(error).__name__}: {error}"
    os.write(tell, line.encode())
    os._exit(code)


def before(what):
    """The folder as it is before: an earlier model or sweep, or nothing."""
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    if what == "anew":
        OUT.mkdir()
        for name in ("points.json", "sweep.yaml"):
            (OUT / name).write_text('{"format_version": 1, "points": []}')
        (OUT / "points" / "earlier").mkdir(parents=True)
    elif what == "torch-export":
        OUT.with_suffix(".pt2").write_text("old")
    elif what == "timm":
        slimvit.save(OLD, OUT)
        (OUT / "stale").touch()
    elif what != "sweep":
        slimvit.save(OLD, OUT)


def content():
    """Every file's bytes, without what depends on the time it took."""
    seconds = re.compile(rb'"(seconds|weights_sha256)": [^,\n]+')
    found = {}
    for path in sorted(p for p in ROOT.rglob("*") if p.is_file()):
        name = path.relative_to(ROOT).as_posix()
        timed = path.suffix in (".md", ".csv") or name.startswith("run/report/")
        found[name] = b"" if timed else seconds.sub(b"", path.read_bytes())
        if path == OUT.with_suffix(".pt2") and found[name] != b"old":
            found[name] = repr(type(torch.export.load(path))).encode()
    return found


def inspected():
    result = CliRunner().invoke(main, ["inspect", str(OUT)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    if result.exit_code:
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return folder_status(OUT)


def looked_at(what, old, new, where):
    """What a stopped process left: as before, or whole, or a run or sweep that can go on; and inspect says which."""
    stands, names = inspected(), {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    now = {name: text for name, text in content().items() if not name.startswith(".") and "/." not in name}
    if what == "torch-export":
        assert now in (old, new), where
    elif stands is None:
        assert not names or not any(OUT.iterdir()) or now == old, (where, names)
    elif stands.state == "nothing":
        assert not old or what == "anew", where
    elif stands.state == "unfinished":
        assert what == "finetune" and stands.go_on == f"slimvit run {OUT} --resume", where
    elif stands.state == "whole":
        assert now in (old, new), (where, [n for n in now if now[n] != new.get(n)])
    else:
        assert stands.state == "sweep" and what in ("sweep", "anew"), where
    return stands


def tried(what, last, old, new):
    code, said = child(what, last)
    where = (what, HOW, last, code, said)
    if ERROR is not None:
        assert code in (0, 1) and "\n" not in said, where
        assert code == 0 or any(
            text in said for text in ("disk is full", "cannot be written", "not writable", "failed")
        )
        assert not any(p.name.startswith(".") for p in ROOT.iterdir()) or HOW == "EROFS", (where, os.listdir(ROOT))
    else:
        assert code != 2, where
    stands = looked_at(what, old, new, where)
    if stands is not None and stands.go_on:
        write(what, stands.go_on.removeprefix("slimvit "))
    else:
        write(what)
    left = content()
    assert left.keys() == new.keys(), (where, left.keys() ^ new.keys())
    assert left == new, (where, [name for name in new if left[name] != new[name]])
    return code


def quiet_plots():
    """Pictures are files like others, and drawing takes longer than all the rest."""
    names = {head_map: ("head_map",), plots: ("stage_accuracy", "curves", "mix_map")}
    names[tradeoff_plots] = ("accuracy_against",)
    names[part_plots] = ("flops_by_part", "fine_tuning")
    for module, drawings in names.items():
        for name in drawings:
            setattr(module, name, lambda *args: args[-1].write_text("<svg></svg>"))


def try_out(what):
    before(what)
    old = content()
    POINTS.seen, POINTS.counts = 0, True
    write(what)
    POINTS.counts = False
    total, new = POINTS.seen, content()
    assert new != old
    points = sorted({1 + i * total // MOST for i in range(MOST)})[-total:]
    stopped = 0
    for last in points:
        before(what)
        stopped += tried(what, last, old, new) != 0
    assert stopped, what
    return f"{what} {HOW}: {len(points)} of {total}"


ROOT.parent.mkdir(parents=True, exist_ok=True)
FILE.write_text(yaml.safe_dump(SWEEP))
quiet_plots()
POINTS.watch()
words = sys.argv[4:]
with open(os.devnull, "w") as devnull, redirect_stdout(devnull), redirect_stderr(devnull):
    if "finetune" in words:
        write("prune", COMMANDS["prune"].replace(str(OUT), str(CUT)))
    told = [try_out(what) for what in words]
print("\n".join(told))
