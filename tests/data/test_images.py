from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from slimvit.data.images import LONGEST, ImageError, decode
from slimvit.data.preprocessing import Preprocessing, eval_transform, to_mode
from slimvit.utils.errors import DataError

PREP = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")


def test_decode_keeps_the_mode_of_the_file(tmp_path: Path) -> None:
    Image.new("LA", (3, 2), (7, 255)).save(tmp_path / "a.png")
    image = decode(str(tmp_path / "a.png"), "a")
    assert image.mode == "LA" and image.size == (3, 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "no known image format"), (b"GIF89a", "no known"), (None, "No such file or directory")],
)
def test_an_unreadable_file_is_one_line_with_its_name(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x y.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        decode(str(path), str(path))
    text = str(caught.value)
    assert text.startswith(f"{path}: not a readable image ({reason}") and "\n" not in text
    assert text.endswith("replace or remove it, or set skip_bad_images") and text.count(str(path)) == 1


def test_a_truncated_image_is_unreadable() -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    with pytest.raises(ImageError, match="^half: not a readable image"):
        decode(io.BytesIO(file.getvalue()[: file.tell() // 2]), "half")


def test_an_image_error_recovers_its_line_from_a_traceback() -> None:
    line = "a.png: not a readable image"
    wrapped = (
        f"Caught ImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        f'  File "x.py", line 1, in f\n    raise ImageError("other")\nslimvit.data.images.ImageError: {line}\n'
    )
    assert str(ImageError(wrapped)) == line
    assert str(pickle.loads(pickle.dumps(ImageError(line)))) == line


HELD = {
    1: (), 2: (Image.Transpose.FLIP_LEFT_RIGHT,), 3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,), 5: (Image.Transpose.TRANSPOSE,), 6: (Image.Transpose.ROTATE_90,),
    7: (Image.Transpose.TRANSVERSE,), 8: (Image.Transpose.ROTATE_270,),
}  # fmt: skip
"""EXIF orientation -> what the way of holding the camera did to an upright picture."""


@pytest.mark.parametrize("orientation", HELD)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_photograph_stands_upright(orientation: int, kind: str) -> None:
    upright = Image.linear_gradient("L").rotate(90).resize((32, 16))
    upright.paste(255, (0, 0, 8, 4))  # no two of the eight ways look alike
    held = upright
    for done in HELD[orientation]:
        held = held.transpose(done)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    held.save(file, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    found = decode(io.BytesIO(file.getvalue()), "x")
    assert found.size == (32, 16)
    assert ImageChops.difference(found, upright).getextrema()[1] <= (4 if kind == "JPEG" else 0)


def test_damaged_notes_of_a_camera_do_no_harm() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(file, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert decode(io.BytesIO(file.getvalue()), "x").getpixel((0, 0)) == (9, 9, 9)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGBA", "CMYK", "I;16"):
        Image.new(mode, (1, 1), 0).save(tmp_path / "one.tif")
        assert torch.allclose(eval_transform(PREP)(decode(str(tmp_path / "one.tif"), "one")), torch.tensor(-1.0)) or (
            mode == "CMYK"  # no ink is white
        )


@pytest.mark.parametrize(("mode", "value"), [("I;16", 0x8123), ("I", 0x8123)])
def test_sixteen_bits_a_pixel(mode: str, value: int) -> None:
    assert to_mode(Image.new(mode, (2, 2), value), "RGB").getpixel((0, 0)) == (0x81,) * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_in_a_file(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), 0x8123, np.uint16)).save(file, kind)
    assert to_mode(decode(io.BytesIO(file.getvalue()), "x"), "L").getpixel((0, 0)) == 0x81


def test_inks_and_palettes(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    palette = Image.new("RGB", (4, 4), (255, 0, 0)).quantize(4)
    palette.save(tmp_path / "red.png")
    palette.save(tmp_path / "red.gif", transparency=0)
    for path in tmp_path.iterdir():
        red, green, blue = eval_transform(PREP)(decode(str(path), path.name)).mean((1, 2)).tolist()
        assert red > 0.9 and green < -0.9 and blue < -0.9, path


@pytest.mark.parametrize("size", [(1, LONGEST + 1), (60_000, 2)])
def test_a_thread_of_an_image_is_refused(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    with pytest.raises(ImageError, match=f"^x: not a readable image .{size[0]} x {size[1]} pixels, one side more than"):
        decode(io.BytesIO(file.getvalue()), "x")


def test_floating_point_pixels_are_refused() -> None:
    file = io.BytesIO()
    Image.new("F", (4, 4), 0.5).save(file, "TIFF")
    with pytest.raises(ImageError, match="floating-point numbers of unknown range"):
        decode(io.BytesIO(file.getvalue()), "x")


def _blank_png(width: int, height: int) -> bytes:
    """A grey PNG of one bit a pixel, a few kilobytes for any size."""
    row = b"\0" + bytes((width + 7) // 8)
    packer = zlib.compressobj()
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = ((b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as slimvit itself asks for
def test_a_large_image_is_read_and_a_bomb_is_not() -> None:
    large = decode(io.BytesIO(_blank_png(10_000, 10_000)), "large")
    assert large.size == (10_000, 10_000) and eval_transform(PREP)(large).shape == (3, 32, 32)
    with pytest.raises(ImageError, match="^bomb: not a readable image .*exceeds limit"):
        decode(io.BytesIO(_blank_png(20_000, 20_000)), "bomb")
