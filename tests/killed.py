"""Run by test_faults.py: kill a writer at every point at which it touches the disk, and look at what it leaves.

    python killed.py FOLDER save|prune [EVERY]

Forks a child for every n-th write (a file opened for writing, a folder made, something renamed or removed), which kills
itself there; prints how many points there were. Fails where the folder is neither as before nor whole.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import timm
import torch

import slimvit
from slimvit.commands import main
from slimvit.store import WEIGHTS

torch.set_num_threads(1)
ROOT, WHAT, EVERY = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1
OUT = ROOT / "run"
OLD, NEW = (timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=n).eval() for n in (2, 3))
PRUNE = ("prune vit_digits --data digits --ratio 0.5 --train-images 16 --eval-images 16 --calibration-images 16 "
         f"--out {OUT} --force")  # fmt: skip


def write():
    if WHAT == "save":
        slimvit.save(NEW, OUT, force=True)
    else:
        main(PRUNE.split(), standalone_mode=False)


def kill_at(last):
    """Count the writes of this process; the process ends at number ``last``."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        writes = writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        if writes and str(ROOT) in str(args[0]):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(last):
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        kill_at(last)
        write()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def whole():
    """The weights' file where a model is there that can be loaded."""
    slimvit.load(OUT)
    return (OUT / WEIGHTS).read_bytes()


last, points = 0, 0
while True:
    last += EVERY
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    slimvit.save(OLD, OUT)
    before = whole()
    if child(last) == 0:
        assert points and whole() != before
        break
    points += 1
    left = sorted(p.name for p in ROOT.iterdir())
    if OUT.exists():  # as before, or whole; else another write puts it right
        whole()
    slimvit.save(NEW, OUT, force=True)
    assert whole() != before and [p.name for p in ROOT.iterdir()] == ["run"], (last, left, os.listdir(ROOT))
    assert OUT.name in left, (last, left)
print(points)
