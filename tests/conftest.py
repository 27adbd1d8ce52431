"""Small random networks in which every branch matters: timm starts LayerScale at 1e-5 and biases and tokens at 0."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start: there is a test a core already

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image
from torch import Tensor, nn

from slimvit.models.build import ModelSource

torch.set_num_threads(1)

Build = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What slimvit measures goes into a folder of the session, not into the user's; matplotlib keeps its fonts."""
    import matplotlib

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


OLD_TIMM = {
    "swin v2, padded": "its Swin V2 does not pad",
    "windows by stage": "its Swin has one window for all stages",
    "test_set_input_size[window]": "its Swin takes no new window",
    "test_set_input_size[always partition]": "its Swin takes no new window",
    "test_swin[padded, windows not square": "its Swin pads square windows alone",
    "beit, all biases]": "its BEiT takes no new input size",
    "mixed rope]": "its mixed positions are counted otherwise",
    "eva02_small_patch14_224": "it does not know grouped keys",
    "[eva]": "it does not know all of the models",
    "as_in_timm[100]": "it repeats no fewer than 256 images",
    "augmix": "its AugMix takes square images alone",
    "causal": "its attention knows no causal masks",
    "boolean-unfused": "its unfused attention adds masks of truth values",
    "test_masks_that_say_the_same": "its attention knows no causal masks",
    "test_no_decay_on_norms_biases_tokens_and_tables": "it decays register tokens",
    "test_plain_timm_reads": "it reads no folders (1.0.26)",
    "words3-1-this run reads": "it reads no folders (1.0.26)",
    "words4-1-holds files": "it reads no folders (1.0.26)",
    "test_commands_take_a_model_on_the_hub": "it reads no folders (1.0.26)",
    "test_the_second_command_is_told": "it reads no folders (1.0.26)",
    "test_no_link_is_written_through[timm]": "it reads no folders (1.0.26)",
    "test_faults.py::test_a_full_disk": "it reads no folders (1.0.26)",
}
"""What timm 1.0.23 cannot do: part of a test's name -> why. Needed below 1.0.31, for `make lowest`."""


LONGEST = ("test_commands_and_code_run", "test_a_sweep_stopped_at_random", "test_distributed.py")
"""Parts of the names of the tests that begin first: one that began last would keep a single core busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(part in item.nodeid for part in LONGEST))
    if Version(timm.__version__) >= Version("1.0.31"):
        return
    for item in items:
        for part, reason in OLD_TIMM.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=f"timm {timm.__version__}: {reason}"))


def pytest_collection_finish() -> None:
    """What was imported stays, so no later collection of garbage needs to look through it; every training makes one."""
    gc.collect()
    gc.freeze()


PICTURES = {"head_map": ("head_map",), "plots": ("stage_accuracy", "curves", "mix_map")}
"""Drawing functions by module of `slimvit.report.run`."""


@pytest.fixture(scope="session", autouse=True)
def drawing() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Drawing takes a quarter of a small run, so runs leave empty pictures; inside `with drawing():` they draw."""
    from slimvit.report.run import head_map, plots

    modules = {"head_map": head_map, "plots": plots}
    real = {(modules[m], name): getattr(modules[m], name) for m, names in PICTURES.items() for name in names}

    @contextmanager
    def drawn() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for (module, name), draw in real.items():
                patch.setattr(module, name, draw)
            yield

    with pytest.MonkeyPatch.context() as patch:
        for module, name in real:
            patch.setattr(module, name, lambda *args: args[-1].touch())
        yield drawn


@pytest.fixture(scope="session", autouse=True)
def counted_once() -> Iterator[None]:
    """Counting MACs takes another quarter, so runs count networks of one form once in a session; `slimvit.count_macs`
    itself, which the tests of the counters call, stays as it is."""
    from slimvit.measure.flops.count import MacCount, count_macs
    from slimvit.models.insert_dense import mixes_in
    from slimvit.models.registry import plan_of
    from slimvit.prune.costs import macs
    from slimvit.workflows import dry_run, state

    known: dict[Any, MacCount] = {}

    def count_once(model: nn.Module) -> MacCount:
        tensors = (*model.named_parameters(), *model.named_buffers())
        widths = tuple(len(units.kept) for block in plan_of(model).blocks for units in block.units.values())
        form = (type(model), widths, mixes_in(model), *((name, tensor.shape) for name, tensor in tensors))
        if form not in known:
            known[form] = count_macs(model)
        return known[form]

    with pytest.MonkeyPatch.context() as patch:
        for module in (dry_run, macs, state):
            patch.setattr(module, "count_macs", count_once)
        yield


def _randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep the size of what passes through; gammas, biases, norms, tokens and tables of size 0.1-1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2 and name.endswith("weight"):
                p.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
            else:
                sign = 1 if name.endswith("weight") else torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
                p.copy_(sign * (0.1 + 0.9 * torch.rand(p.shape, generator=generator)))
    return model.eval()


def _built(name: str, settings: dict[str, Any]) -> Any:
    """timm's model; where timm (before 1.0.31) keeps no arguments, with what `slimvit.create_model` keeps of them."""
    model: Any = timm.create_model(name, **settings)
    if not hasattr(model, "_model_args"):
        model.slim_source = ModelSource(name, settings)
    return model


@pytest.fixture(scope="session")
def randomise() -> Build:
    return _randomise


@pytest.fixture(scope="session")
def vit() -> Build:
    """A named timm model with few blocks, few tokens and random weights, in eval mode."""

    def build(name: str = "deit_tiny_patch16_224", seed: int = 0, **kwargs: Any) -> Any:
        size = 28 if "patch14" in name else 64 if "patch32" in name else 32
        return _randomise(_built(name, {"img_size": size, "depth": 3, "num_classes": 5} | kwargs), seed)

    return build


@pytest.fixture(scope="session")
def swin() -> Build:
    """A named timm Swin with few narrow blocks, a small image and random weights, in eval mode."""

    def build(name: str = "swin_tiny_patch4_window7_224", seed: int = 0, **kwargs: Any) -> Any:
        settings = {"img_size": 32, "window_size": 4, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16}
        return _randomise(_built(name, settings | {"num_classes": 5} | kwargs), seed)

    return build


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    """Random images [n, 3, S, S] of the size a model takes."""

    def draw(model: Any, n: int = 4, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, 3, *model.patch_embed.img_size, generator=generator)

    return draw


@pytest.fixture(scope="session")
def batches(images: Callable[..., Tensor]) -> Callable[..., list[tuple[Tensor, Tensor]]]:
    """Batches of random images with labels (-1: none), as calibration sees them."""

    def draw(model: Any, count: int = 3, size: int = 4, labelled: bool = True) -> list[tuple[Tensor, Tensor]]:
        labels = [torch.arange(size) % max(1, model.num_classes) if labelled else torch.full((size,), -1)] * count
        return [(images(model, size, seed=i), labels[i]) for i in range(count)]

    return draw


@pytest.fixture(scope="session")
def masked() -> Callable[..., Any]:
    """A copy of a full model in which all heads but the kept ones, by block, output zero: what a cut must equal."""

    def mask(model: Any, kept_heads: Iterable[Sequence[int]]) -> Any:
        import copy

        from slimvit.models.registry import attention_blocks

        model = copy.deepcopy(model)
        for view, kept in zip(attention_blocks(model), kept_heads, strict=True):
            channels = torch.zeros(view.attn.num_heads).index_fill(0, torch.tensor(kept, dtype=torch.long), 1)
            channels = channels.repeat_interleave(view.head_dim)
            view.attn.proj.register_forward_pre_hook(lambda _, args, m=channels: (args[0] * m.to(args[0]),))
        return model

    return mask


@pytest.fixture(scope="session")
def gap() -> Callable[[Tensor, Tensor], float]:
    """Largest difference over largest value."""
    return lambda found, wanted: ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture
def quick_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short turns, batches of at most 4, and no process a model for its memory."""
    from slimvit.measure.latency import batch_size, timer
    from slimvit.workflows.bench import bench

    monkeypatch.setattr(timer, "TURN", 0.0)
    monkeypatch.setattr(batch_size, "LARGEST", 4)
    monkeypatch.setattr(bench, "peak_on_cpu", lambda *_: 2**30)


@pytest.fixture(scope="session")
def slimvit_() -> Callable[..., Any]:
    """Run the command line in this process; the exit code must be ``code``. Bugs raise."""
    from click.testing import CliRunner

    from slimvit.cli import main

    def invoke(*words: object, code: int = 0) -> Any:
        result = CliRunner().invoke(main, [str(w) for w in words], prog_name="slimvit")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture(scope="session")
def digit_folder() -> Callable[..., Path]:
    """Write scikit-learn's digits of the first few classes as train/CLASS/*.png and val/CLASS/*.png."""
    from sklearn.datasets import load_digits

    def write(root: Path, classes: int = 3, train: int = 16, val: int = 8, labelled: bool = True) -> Path:
        digits = load_digits()
        for digit in range(classes):
            pixels = digits.images[digits.target == digit][: train + val]
            for i, image in enumerate((pixels * 15).astype("uint8")):
                split = root / ("train" if i < train else "val")
                path = split / f"{digit}" / f"{i}.png" if labelled else split / f"{digit}_{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
        return root

    return write
