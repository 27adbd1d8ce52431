"""Fine-tuning on labels, by distillation from a teacher, or both."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.utils.data import DataLoader

from slimvit.config.training import TrainSection
from slimvit.data.batches import check_same_order
from slimvit.models.base import TimmModule
from slimvit.models.registry import check_unwrapped
from slimvit.train.distill import training_loss
from slimvit.train.loop import DEFAULTS, TrainOptions, train
from slimvit.train.state import History
from slimvit.train.teacher import Teacher
from slimvit.utils.errors import DataError


def finetune(
    model: TimmModule,
    loader: DataLoader,
    section: TrainSection,
    *,
    teacher: nn.Module | Teacher | None = None,
    labelled: bool = True,
    options: TrainOptions = DEFAULTS,
) -> tuple[nn.Module, History]:
    """Fine-tune a copy of a model.

    Args:
        model: The network to train; it does not change.
        loader: Batches (images [B, C, H, W], labels [B]) from `slimvit.data.loaders.train_loader`.
        section: Epochs, learning rate, schedule, augmentation. A `FinetuneSection` with `distill` uses the teacher.
        teacher: The teacher, usually the uncut network. A `Teacher` also holds its preprocessing and cached
            predictions.
        labelled: Whether the data has labels. Without labels the loss is distillation alone.
        options: Learning rate, seed, device, checkpoints and callback.

    Returns:
        The trained copy in eval mode, and one row per epoch: epoch, loss, lr, seconds.

    Raises:
        DataError: Neither labels nor a teacher are given, `loader` is no DataLoader, or its data set names other
            classes than the model, or the same in another order.
        ModelError: The model is a compiled or parallel wrapper.
        Diverged: The loss became NaN or infinite.

    Example:
        ```python
        section = FinetuneSection(epochs=3)
        loader = train_loader(images, preprocessing_of(slim), section, batch_size=64, workers=0, seed=0)
        slim, history = slimvit.finetune(slim, loader, section, teacher=original)
        ```
    """
    check_unwrapped(model)
    if not isinstance(loader, DataLoader):
        raise DataError(f"loader is of type {type(loader).__name__}; give a DataLoader (data.loaders.train_loader)")
    if labelled:
        check_same_order(loader, model)
    engine = options.engine_for(model)
    if isinstance(teacher, nn.Module):
        teacher = Teacher(teacher)
    if teacher is not None:
        teacher = teacher.on(engine.device)
    loss = training_loss(section, teacher, labelled, bool(model.num_classes))
    return train(model, loader, loss, section, replace(options, engine=engine))
