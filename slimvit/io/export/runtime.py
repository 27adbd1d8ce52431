"""An ONNX file as a module, run by ONNX Runtime on the CPU. onnxruntime is optional and imported nowhere else."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from slimvit.utils.errors import ModelError

DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
"""Types of input, and their dtypes."""


class OnnxModel(nn.Module):
    """An ONNX file as a module: images [B, C, H, W] -> its first output.

    It uses as many threads as torch has when it is created. A file for one image at a time runs once per image.

    Raises:
        ModelError: The file cannot be read, or takes anything but one batch of images of a fixed size.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.session = _session(Path(path))
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
            taken = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            raise ModelError(f"{path}: takes {taken or 'nothing'}, but must take images [batch, C, H, W] of one size")
        if inputs[0].type not in DTYPES:
            raise ModelError(f"{path}: takes {inputs[0].type}, but images must be {' or '.join(DTYPES)}")
        self.input, self.dtype = inputs[0].name, DTYPES[inputs[0].type]
        self.input_size: tuple[int, int, int] = tuple(shape[1:])
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        """Images at a time; None takes any number."""
        self.label: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        """The metadata of a file that slimvit wrote."""
        self.versions = {"onnxruntime": onnxruntime.__version__}

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to the first output [B, ...]."""
        parts = images.split(1) if self.batch == 1 else (images,)
        return torch.cat([self._run(part) for part in parts]) if len(parts) > 1 else self._run(parts[0])

    def _run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.input: images.to(self.dtype).numpy()})[0])


def _session(path: Path) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # waiting threads slow what runs next
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # the file is the user's: every way it can be broken ends in one line
        raise ModelError(
            f"{path}: no ONNX file that ONNX Runtime can run: {' '.join(str(error).split())[:300]}"
        ) from None
