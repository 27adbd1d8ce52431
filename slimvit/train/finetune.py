"""Fine-tuning a model on labels, on what a teacher gives, or on both."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from slimvit.config.training import TrainSection
from slimvit.train.checkpoint import Checkpoints
from slimvit.train.distill import Batches, View, answers_of, training_loss
from slimvit.train.loop import AfterEpoch, train
from slimvit.train.state import History
from slimvit.utils.distributed import Engine, open_engine


def finetune(
    model: nn.Module,
    loader: DataLoader,
    section: TrainSection,
    *,
    teacher: nn.Module | None = None,
    teacher_sees: View = lambda images: images,
    labelled: bool = True,
    lr: float = 2e-5,
    device: torch.device | str = "cpu",
    engine: Engine | None = None,
    seed: int = 0,
    mix_lr_scale: float = 1.0,
    what: str = "fine-tuning",
    after_epoch: AfterEpoch = lambda model, row: None,
    checkpoints: Checkpoints | None = None,
    in_order: Batches = (),
) -> tuple[nn.Module, History]:
    """A trained copy of ``model`` in eval mode, and a row an epoch (epoch, loss, lr, seconds).

    ``loader``: from :func:`slimvit.data.loaders.train_loader`. ``section``: epochs, schedule and augmentation; a
    ``FinetuneSection`` with ``distill`` also learns from ``teacher``, which stays as it is and sees the same images,
    turned by ``teacher_sees`` into what it wants (:func:`slimvit.data.preprocessing.converter`).
    ``lr``: peak learning rate when the section names none. ``mix_lr_scale``: learning rate of the mixes of dense
    attention, in units of the others'. ``engine``: where to compute, instead of one process on ``device`` in fp32.
    ``checkpoints``: where the state of the training is kept, and gone on from. ``in_order``: batches of the training
    images as they lie, for a section with ``cache_teacher``.
    """
    engine = engine or open_engine(str(device))
    if teacher is not None:
        teacher = teacher.to(engine.device).eval()
    answers = None
    if teacher is not None and model.num_classes and section.numbered:
        answers = answers_of(teacher, in_order, teacher_sees, engine.device)
    loss = training_loss(section, teacher, labelled, bool(model.num_classes), teacher_sees, answers)
    return train(
        model,
        loader,
        loss,
        section,
        lr=lr,
        engine=engine,
        seed=seed,
        mix_lr_scale=mix_lr_scale,
        what=what,
        after_epoch=after_epoch,
        checkpoints=checkpoints,
    )
