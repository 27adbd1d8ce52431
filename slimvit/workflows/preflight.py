"""Checks before the long part of a run: folders, classes, images, training settings."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from slimvit.config.recipe import DenseSection, Recipe
from slimvit.config.training import TrainSection
from slimvit.data.class_order import output_names, with_class_order
from slimvit.data.images import Images
from slimvit.data.preprocessing import converter, preprocessing_of, train_transform
from slimvit.data.sources import Data
from slimvit.data.subsets import check_images, draw
from slimvit.io.hub.name import is_hub_name
from slimvit.io.open import random_weights
from slimvit.models.base import TimmModule
from slimvit.models.classes import reorder_classes
from slimvit.models.insert_dense import check_takes_dense, dense_mix
from slimvit.models.modes import evaluating
from slimvit.models.registry import names_of
from slimvit.prune.criteria.registry import criterion_of
from slimvit.train.distill import training_loss
from slimvit.train.optimizer import check_optimizer
from slimvit.train.step import check_mixing
from slimvit.train.teacher import Teacher, check_same_streams
from slimvit.utils.errors import DataError, ModelError, RecipeError, StoreError
from slimvit.utils.output import check_free


def check_out(recipe: Recipe, out: Path, force: bool) -> None:
    """Raise `StoreError` if the output folder exists, unless `force`, or holds a model that the recipe reads."""
    check_free(out, force)
    for section in (recipe.model, recipe.finetune.teacher):
        if (
            section is not None
            and not is_hub_name(section.name)
            and Path(section.name).resolve().is_relative_to(out.resolve())
        ):
            raise StoreError(f"{out}: this run reads {section.name}, so it cannot write there; name another --out")


def check_dense(section: DenseSection, model: nn.Module) -> None:
    """Raise `ModelError` if the recipe inserts dense attention into a model that has it or does not support it."""
    if section.mix is None:
        return
    if dense_mix(model) is not None:
        raise ModelError(f"--dense {section.mix}: the model has dense attention already (mix {dense_mix(model)})")
    check_takes_dense(model)


def check_classes(recipe: Recipe, data: Data, model: TimmModule) -> None:
    """Raise `DataError` if the classifier does not fit the data and the recipe does not train one first."""
    name, how = recipe.model.name, "train a classifier for the data first: --adapt-epochs 20 (--adapt head or all)"
    if recipe.adapt.epochs:
        if not data.labelled:
            raise DataError(f"{data.name}: has no labels, so no classifier can be trained; drop --adapt-epochs")
        return
    if model.num_classes and data.labelled and model.num_classes != data.num_classes:
        raise DataError(f"{name} knows {model.num_classes} classes, but {data.name} has {data.num_classes}; {how}")
    if getattr(model, "untrained_classifier", False):
        raise DataError(f"{name}: its weights bring no classifier for {model.num_classes} classes; {how}")
    scoring = recipe.prune.wanted and recipe.prune.plan is None
    needs = scoring and criterion_of(recipe.prune.criterion).needs_classifier
    if needs and not (model.num_classes and data.labelled):
        what = f"{data.name} has no labels" if model.num_classes else f"{name} has no classifier"
        way_out = f"use residual, or {how}" if data.labelled else "use residual"
        raise DataError(f"criterion {recipe.prune.criterion} needs labels and a classifier, but {what}; {way_out}")


def match_classes(recipe: Recipe, data: Data, model: TimmModule) -> Data:
    """Return the data with its classes in the order of the model's outputs, matched by name.

    Raises:
        DataError: The model knows other classes, or nothing tells their order.
    """
    if recipe.adapt.epochs or not (data.labelled and model.num_classes):
        return data
    return with_class_order(data, output_names(data, model, recipe.model.name, recipe.model.class_order))


def match_teacher(recipe: Recipe, opened: Data, data: Data, teacher: TimmModule | None) -> None:
    """Put the outputs of a teacher, in place, into the order of the data's classes.

    Args:
        recipe: The recipe that names the teacher.
        opened: The data with its classes in their own order.
        data: The data with its classes in the order that is learnt.
        teacher: The teacher; one with another number of classes stays as it is.

    Raises:
        DataError: The teacher knows other classes, or nothing tells their order.
    """
    section = recipe.finetune.teacher
    if teacher is None or section is None or not data.labelled or teacher.num_classes != data.num_classes:
        return
    if recipe.finetune.distill_kind == "features" and sorted(names_of(teacher)) != sorted(data.class_names):
        return
    name, option = f"teacher {section.name}", "finetune.teacher.class_order"
    names = output_names(opened, teacher, name, section.class_order, option)
    if names != data.class_names:
        reorder_classes(teacher, names, data.class_names)


def check_training(recipe: Recipe, data: Data, model: TimmModule, compiles: bool = False) -> None:
    """Check the settings of trainings before the run reaches them.

    Raises:
        RecipeError: Settings contradict each other.
        DataError: A setting needs labels.
        ModelError: The model has no classifier to train.
    """
    if compiles and not (recipe.finetune.epochs or recipe.adapt.epochs):
        raise RecipeError("--compile compiles the training, but there are no epochs to train; drop it")
    if compiles and recipe.finetune.distill_kind == "features" and recipe.finetune.epochs:
        raise RecipeError("distill_kind features reads tokens inside the network, which --compile hides; drop one")
    sections: tuple[TrainSection, ...] = (recipe.adapt, recipe.finetune)
    for section in sections:
        if section.epochs:
            train_transform(preprocessing_of(model), section)
            check_mixing(section, min(recipe.data.batch_size, len(data.train)))
            check_optimizer(section)
            if section.sampler == "balanced" and not data.labelled:
                raise DataError(f"{data.name}: has no labels, so its classes cannot be balanced; drop sampler")
    if recipe.finetune.epochs:
        if recipe.finetune.train == "head" and not (model.num_classes or recipe.adapt.epochs):
            raise ModelError(f"{recipe.model.name}: has no classifier, so train head has nothing to train; drop it")
        teacher = Teacher(model) if recipe.changes_the_model or recipe.finetune.teacher else None
        training_loss(recipe.finetune, teacher, data.labelled, bool(model.num_classes or recipe.adapt.epochs))


def check_teacher(recipe: Recipe, data: Data, model: TimmModule, teacher: TimmModule | None) -> None:
    """Check that the network can learn from its teacher: trained weights, the same outputs, a usable input size.

    Raises:
        RecipeError: The original would be the teacher, but has random weights.
        ModelError: The teacher cannot take the images, or its features do not fit.
        DataError: The teacher knows other classes.
    """
    section = recipe.finetune
    if not (section.epochs and section.distill):
        return
    if teacher is None:
        if recipe.changes_the_model and random_weights(recipe.model) and not recipe.adapt.epochs:
            raise RecipeError(
                f"{recipe.model.name}: has random weights, so it cannot teach the network made from it; "
                "name a teacher, or give distill false (--no-distill)"
            )
        return
    assert section.teacher is not None
    name, prep = section.teacher.name, preprocessing_of(model)
    image = torch.zeros(1, *prep.input_size)
    try:
        converted = converter(prep, preprocessing_of(teacher))(image)
    except DataError as error:
        raise ModelError(f"{name} cannot teach {recipe.model.name}: {error}") from None
    if section.distill_kind == "features":
        with evaluating(model), evaluating(teacher):
            check_same_streams(model, teacher, image, converted)
    else:
        _check_same_outputs(recipe, data, model, teacher)


def _check_same_outputs(recipe: Recipe, data: Data, model: TimmModule, teacher: TimmModule) -> None:
    """Raise an error unless the teacher has the model's classes, or its number of features without a classifier."""
    assert recipe.finetune.teacher is not None
    name, way_out = recipe.finetune.teacher.name, "name another teacher, or use distill_kind features"
    classes = data.num_classes if recipe.adapt.epochs else model.num_classes
    if classes == 0:
        if teacher.num_features != model.num_features:
            text = f"{teacher.num_features} features, but {recipe.model.name} {model.num_features}"
            raise ModelError(f"{name}: the teacher gives {text}; name another teacher")
    elif teacher.num_classes != classes:
        raise DataError(f"{name}: the teacher knows {teacher.num_classes} classes, but {classes} are learnt; {way_out}")
    elif getattr(teacher, "untrained_classifier", False):
        raise DataError(f"{name}: the teacher's classifier for {classes} classes is untrained; {way_out}")


def check_readable(recipe: Recipe, data: Data) -> None:
    """Raise `DataError` that names the first unreadable image among those that the run reads."""
    if not recipe.data.skip_bad_images:  # with it, open_data has checked them all
        check_images(_images_in_use(recipe, data), "training", skip=False)
        check_images(data.val, "validation", skip=False)


def _images_in_use(recipe: Recipe, data: Data) -> Images:
    """The training images that the run will read."""
    if recipe.adapt.epochs or recipe.finetune.epochs:
        return data.train
    return draw(data.train, recipe.prune.calibration_images if recipe.prune.wanted else 0, recipe.seed)
