import errno
import os
import re
from pathlib import Path

import pytest

from slimvit.utils.errors import StoreError
from slimvit.utils.files import ASIDE
from slimvit.utils.lock import UNFINISHED
from slimvit.utils.output import MARKERS, check_free, check_free_file, new_file, new_folder


def refused(text):
    return pytest.raises(StoreError, match=f"^{re.escape(text)}")


def ours(folder, text="old"):
    folder.mkdir(parents=True)
    (folder / "slim.json").write_text(text)
    return folder


def write(target, force=False, text="new"):
    with new_folder(target, force) as partial:
        (partial / "slim.json").write_text(text)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_new_folder_with_its_parents(tmp_path):
    write(tmp_path / "a" / "b" / "run")
    assert (tmp_path / "a" / "b" / "run" / "slim.json").read_text() == "new"
    assert names(tmp_path / "a" / "b") == ["run"]
    assert (tmp_path / "a" / "b" / "run").stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run")
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["slim.json"]


def test_a_folder_with_a_killed_process_beginning_is_free(tmp_path):
    (tmp_path / "run" / f".{UNFINISHED}.{ASIDE}x" / "model").mkdir(parents=True)
    write(tmp_path / "run")
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["slim.json"]


def test_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("run"))
    write(Path("run"), force=True)
    assert names(tmp_path) == ["run"]


def test_a_folder_in_use(tmp_path):
    ours(tmp_path / "run")
    with refused(f"{tmp_path / 'run'}: the output folder is in use; name another one, or add --force to replace it"):
        write(tmp_path / "run")
    assert (tmp_path / "run" / "slim.json").read_text() == "old"


@pytest.mark.parametrize("marker", sorted(MARKERS))
def test_force_replaces_what_slimvit_wrote(marker, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / marker).touch()
    (tmp_path / "run" / "stale.png").touch()
    write(tmp_path / "run", force=True)
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["slim.json"]


def test_force_leaves_foreign_folders_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with refused(f"{tmp_path / 'thesis'}: holds files that slimvit did not write, so --force leaves it alone"):
        write(tmp_path / "thesis", force=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert names(tmp_path) == ["thesis"]


@pytest.mark.parametrize("force", [True, False])
def test_a_file_in_the_way(force, tmp_path):
    (tmp_path / "run").touch()
    with refused(f"{tmp_path / 'run'}: is a file; name a folder for --out"):
        check_free(tmp_path / "run", force)
    with refused(f"{tmp_path / 'run' / 'x' / 'y'}: {tmp_path / 'run'} is a file; name another folder for --out"):
        check_free(tmp_path / "run" / "x" / "y", force)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    with refused(f"{tmp_path / 'run'}: {tmp_path} is not writable"):
        check_free(tmp_path / "run", False)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_folder(error, tmp_path):
    ours(tmp_path / "run")
    with pytest.raises(type(error)), new_folder(tmp_path / "run", force=True) as partial:
        (partial / "slim.json").write_text("half")
        raise error
    assert names(tmp_path) == ["run"] and (tmp_path / "run" / "slim.json").read_text() == "old"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENOSPC, "the disk is full; nothing was written. Free some space or name another folder"),
        (errno.EDQUOT, "the disk is full; nothing was written"),
        (errno.EIO, f"cannot be written: {os.strerror(errno.EIO)}"),
    ],
)
def test_a_failing_disk(code, told, tmp_path):
    ours(tmp_path / "run")
    with refused(f"{tmp_path / 'run'}: {told}"), new_folder(tmp_path / "run", force=True):
        raise OSError(code, os.strerror(code))
    assert names(tmp_path) == ["run"] and (tmp_path / "run" / "slim.json").read_text() == "old"


def test_a_failing_last_step_brings_the_old_folder_back(tmp_path, monkeypatch):
    ours(tmp_path / "run")
    real = Path.rename
    monkeypatch.setattr("slimvit.utils.output.exchange", lambda *_: False)

    def rename(self, target):
        if (self / "fresh").exists():
            raise OSError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    told = refused(f"{tmp_path / 'run'}: cannot be written: Permission denied")
    with told, new_folder(tmp_path / "run", force=True) as partial:
        (partial / "fresh").touch()
    assert names(tmp_path) == ["run"] and (tmp_path / "run" / "slim.json").read_text() == "old"


# files


def test_a_new_file_with_its_parents(tmp_path):
    target = tmp_path / "a" / "b" / "m.onnx"
    check_free_file(target, ".onnx", force=False)
    with new_file(target) as partial:
        assert partial.suffix == ".onnx" and not target.exists()
        partial.write_text("new")
    assert target.read_text() == "new" and names(target.parent) == ["m.onnx"]
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(error, tmp_path):
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(type(error)), new_file(tmp_path / "m.onnx") as partial:
        partial.write_text("half")
        raise error
    assert names(tmp_path) == ["m.onnx"] and (tmp_path / "m.onnx").read_text() == "old"


def test_a_full_disk_leaves_no_file(tmp_path):
    with refused(f"{tmp_path / 'm.onnx'}: the disk is full"), new_file(tmp_path / "m.onnx"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_file_where_none_can_be(tmp_path):
    (tmp_path / "file").touch()
    with refused(f"{tmp_path / 'file' / 'm.pt2'}: {tmp_path / 'file'} is a file"):
        check_free_file(tmp_path / "file" / "m.pt2", ".pt2", force=True)
