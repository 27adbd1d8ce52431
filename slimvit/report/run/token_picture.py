"""Picture of an image beside the tokens that its patches were merged into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimvit.report.plot_style import INK, save_figure

SIDE = 3.2
"""Side of one panel, inches."""


def token_picture(image: npt.NDArray[Any], groups: npt.NDArray[Any], path: Path) -> None:
    """Draw an image, and the image with every group of patches in its mean colour and an outline.

    Args:
        image: [H, W, 3], 0-1.
        groups: Number of the token of each patch [rows, columns].
        path: The picture.
    """
    fig = Figure(figsize=(2 * SIDE, SIDE + 0.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    left.imshow(image)
    right.imshow(_mean_colours(image, groups))
    _outline(right, groups, image.shape[0] / groups.shape[0], image.shape[1] / groups.shape[1])
    left.set_title(f"{groups.size} patches", color=INK, fontsize=10)
    right.set_title(f"{len(np.unique(groups))} tokens", color=INK, fontsize=10)
    for axes in (left, right):
        axes.set_axis_off()
    save_figure(fig, path)


def _mean_colours(image: npt.NDArray[Any], groups: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The image with the mean colour of its group in every pixel [H, W, 3]."""
    rows = np.arange(image.shape[0]) * groups.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * groups.shape[1] // image.shape[1]
    _, numbers = np.unique(groups[rows][:, columns], return_inverse=True)
    numbers = numbers.reshape(-1)
    sums = np.stack([np.bincount(numbers, image[..., c].reshape(-1)) for c in range(image.shape[-1])], -1)
    means: npt.NDArray[Any] = (sums / np.bincount(numbers)[:, None])[numbers].reshape(image.shape)
    return means


def _outline(axes: Axes, groups: npt.NDArray[Any], height: float, width: float) -> None:
    """Draw a line between neighbouring patches of different groups; `height` and `width` of a patch in pixels."""
    style: dict[str, Any] = {"color": "white", "linewidth": 1.0}
    for row, column in np.argwhere(groups[1:] != groups[:-1]):
        axes.plot([column * width - 0.5, (column + 1) * width - 0.5], [(row + 1) * height - 0.5] * 2, **style)
    for row, column in np.argwhere(groups[:, 1:] != groups[:, :-1]):
        axes.plot([(column + 1) * width - 0.5] * 2, [row * height - 0.5, (row + 1) * height - 0.5], **style)
