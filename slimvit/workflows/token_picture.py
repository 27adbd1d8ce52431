"""The picture of the tokens that the patches of an image were merged into."""

from __future__ import annotations

from pathlib import Path

import torch

from slimvit.data.images import decode
from slimvit.data.preprocessing import eval_transform, preprocessing_of
from slimvit.io.open import model_of
from slimvit.models.base import TimmModule
from slimvit.models.modes import device_of
from slimvit.models.token_groups import check_merges_tokens, token_groups
from slimvit.utils.errors import DataError
from slimvit.utils.output import check_free_file, new_file


def draw_tokens(model: TimmModule | str | Path, image: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Draw which patches of an image share a token behind the last block, beside the image.

    Args:
        model: A model that merges tokens, or a name as commands take it: a run folder, a Hub name.
        image: An image file.
        out: The picture, .png.
        force: Replace an earlier picture.

    Raises:
        ModelError: The model merges no tokens.
        DataError: The image is missing or unreadable.
        StoreError: `out` exists, or is no .png.

    Example:
        >>> slimvit.draw_tokens("runs/tokens", "photo.jpg", "tokens.png")
    """
    from slimvit.report.run.token_picture import token_picture

    check_free_file(Path(out), ".png", force)
    if not Path(image).is_file():
        raise DataError(f"{image}: no such image file")
    net: TimmModule = model_of(model)
    check_merges_tokens(net)
    prep = preprocessing_of(net)
    pixels = eval_transform(prep)(decode(str(image), str(image)))
    groups = token_groups(net, pixels[None].to(device_of(net)))[0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (prep.mean, prep.std))
    shown = (pixels * std + mean).clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3)
    with new_file(Path(out)) as partial:
        token_picture(shown.numpy(), groups.cpu().numpy(), partial)
