"""Grey images of more than 8 bits keep their contrast."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slimvit.data.depth import deep_notice
from slimvit.data.folder import open_folder
from slimvit.data.images import ImageError, decode
from slimvit.data.preprocessing import to_mode
from slimvit.workflows.predict import image_files

UNSIGNED, SIGNED = 1, 2
HELD_SIDEWAYS = (0x0112, 3, 1, 6)


def tiff(pixels: bytes, size: tuple[int, int], bits: int, sign: int = UNSIGNED, *more: tuple[int, ...]) -> bytes:
    """A grey TIFF, little-endian; `more` are further entries (tag, type, count, value)."""
    width, height = size
    entries = {
        tag: (tag, kind, 1, value)
        for tag, kind, value in (
            (256, 3, width),
            (257, 3, height),
            (258, 3, bits),
            (259, 3, 1),
            (262, 3, 1),
            (277, 3, 1),
        )
        + ((278, 3, height), (279, 4, len(pixels)), (339, 3, sign))
    } | {entry[0]: entry for entry in more}
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    entries[273] = (273, 4, 1, start)
    packed = b"".join(struct.pack("<HHII", *entries[tag]) for tag in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", 0) + pixels


def grey(content: bytes) -> list[list[int]]:
    return np.asarray(to_mode(decode(io.BytesIO(content), "x"), "L")).tolist()


@pytest.mark.parametrize(
    ("values", "kind", "sign", "wanted"),
    [
        ([0, 0x0123, 0x0800, 0x0FFF], "<u2", UNSIGNED, [0, 0x12, 0x80, 255]),  # 12 bits in 16
        ([0, 0x0123, 0x8123, 0xFFFF], "<u2", UNSIGNED, [0, 1, 0x81, 255]),
        ([0, 0x1000, 0x2000, 0x3FFF], "<u2", UNSIGNED, [0, 16, 32, 63]),
        ([0, 2**30, 2**31, 2**32 - 1], "<u4", UNSIGNED, [0, 64, 128, 255]),  # Pillow reads negative numbers
        ([0, 50_000, 100_000, 199_999], "<u4", UNSIGNED, [0, 64, 128, 255]),
        ([0, 0x0123, 0x8123, 0xFFFF], "<u4", UNSIGNED, [0, 1, 0x81, 255]),
        ([0, 0x0123, 0x0800, 0x0FFF], "<i4", SIGNED, [0, 0x12, 0x80, 255]),
        ([-1024, 0, 1024, 3071], "<i2", SIGNED, [0, 64, 128, 255]),  # a CT
        ([-(2**31), -(2**30), 0, 2**31 - 1], "<i4", SIGNED, [0, 64, 128, 255]),
        ([0, 0, 0, 0], "<u4", UNSIGNED, [0, 0, 0, 0]),
        ([-7, -7, -7, -7], "<i4", SIGNED, [0, 0, 0, 0]),
    ],
)
def test_whole_numbers_of_a_tiff(values: list[int], kind: str, sign: int, wanted: list[int]) -> None:
    pixels = np.array(values, kind)
    assert grey(tiff(pixels.tobytes(), (4, 1), 8 * pixels.itemsize, sign)) == [wanted]


def test_the_range_that_the_file_names() -> None:
    pixels = np.array([0, 256, 512, 1023], "<u2").tobytes()
    assert grey(tiff(pixels, (4, 1), 16, UNSIGNED, (281, 3, 1, 1023))) == [[0, 64, 128, 255]]
    assert grey(tiff(pixels, (4, 1), 16, UNSIGNED, (281, 3, 1, 500))) == [[0, 16, 32, 63]]  # it holds larger values
    assert grey(tiff(pixels, (4, 1), 16, UNSIGNED, (281, 3, 1, 65_535))) == [[0, 16, 32, 63]]  # what all writers note
    assert grey(tiff(bytes([0x10, 0x08, 0x00]), (2, 1), 12)) == [[0x10, 0x80]]  # two numbers of 12 bits in 3 bytes
    assert grey(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes()) == [[0, 128, 255]]
    assert grey(b"P5 3 1 65535\n" + np.array([0, 512, 1023], ">u2").tobytes()) == [[0, 2, 3]]


def test_a_tag_of_another_type_is_ignored() -> None:
    pixels = np.array([0, 0x0FFF], "<u2").tobytes()
    assert grey(tiff(pixels, (2, 1), 16, UNSIGNED, (281, 2, 1, 65))) == [[0, 255]]  # a text


def test_white_may_be_zero_and_the_camera_on_its_side() -> None:
    pixels = np.array([0, 0x4000, 0x8000, 0xFFFF], "<u2").tobytes()
    assert grey(tiff(pixels, (4, 1), 16, UNSIGNED, (262, 3, 1, 0))) == [[255, 191, 127, 0]]
    assert grey(tiff(pixels, (4, 1), 16, UNSIGNED, HELD_SIDEWAYS)) == [[0], [64], [128], [255]]
    pixels = np.array([0, 2**30, 2**31, 2**32 - 1], "<u4").tobytes()
    assert grey(tiff(pixels, (4, 1), 32, UNSIGNED, HELD_SIDEWAYS)) == [[0], [64], [128], [255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bits_in_a_file(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 0x0123, 0x0FFF]], np.uint16)).save(file, kind)
    assert grey(file.getvalue()) == [[0, 0x12, 255]]


def deep_colours(*values: int) -> bytes:
    """A PNG of one row, 16 bits a colour."""
    row = zlib.compress(b"\0" + b"".join(struct.pack(">3H", value, value, value) for value in values))
    chunks = ((b"IHDR", struct.pack(">2I5B", len(values), 1, 16, 2, 0, 0, 0)), (b"IDAT", row), (b"IEND", b""))
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_colours_of_which_pillow_leaves_nothing_are_refused() -> None:
    with pytest.raises(ImageError, match="its colours use 12 of 16 bits at most, of which 4 are left; save it with 8"):
        decode(io.BytesIO(deep_colours(0, 0x0FFF)), "x")
    assert decode(io.BytesIO(deep_colours(0, 0x80FF)), "x").getpixel((1, 0)) == (128,) * 3
    assert decode(io.BytesIO(deep_colours(0, 0)), "x").getpixel((1, 0)) == (0, 0, 0)


def test_one_line_says_how_a_data_set_is_scaled(folder: Path, image, capsys) -> None:
    open_folder(folder)
    assert capsys.readouterr().err == ""
    deep = folder / "train" / "cat" / "deep.tif"
    deep.write_bytes(tiff(np.array([0, 9], "<u2").tobytes(), (2, 1), 16))
    open_folder(folder)
    told = capsys.readouterr().err
    assert told.startswith(f"{deep}: more than 8 bits of grey, so images are scaled to 8 bits by") and len(told) < 400
    assert told.count("\n") == 1
    image_files([deep])
    assert capsys.readouterr().err == told


def test_a_format_that_runs_a_program_is_not_read(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "x.eps")
    with pytest.raises(ImageError, match=r"not a readable image \(EPS is not read, save it as PNG\)"):
        decode(str(tmp_path / "x.eps"), "x")


def test_no_notice_without_such_images(tmp_path: Path, image) -> None:
    (tmp_path / "damaged.tif").write_bytes(b"II*")
    assert deep_notice([]) is deep_notice([str(tmp_path / "damaged.tif"), str(tmp_path / "missing.png")]) is None
