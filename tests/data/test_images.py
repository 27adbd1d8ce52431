from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
from PIL import Image

from slimvit.data.images import ImageError, decode
from slimvit.errors import DataError


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
