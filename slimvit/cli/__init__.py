"""The command line: one command per file. A command imports its workflow only when it is called, so help is fast."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from slimvit.utils.errors import SlimvitError, nearest
from slimvit.utils.escaping import in_message

COMMANDS = {
    "prune": "Prune a model to a budget, repair, fine-tune, measure and save it.",
    "run": "Run a recipe.",
    "sweep": "Run many recipes that differ in a few settings.",
    "finetune": "Fine-tune a pruned model further.",
    "evaluate": "Measure the accuracy, size and cost of a model.",
    "predict": "Classify images with one model or two.",
    "inspect": "Show the blocks, heads, parameters and MACs of a model.",
    "bench": "Time models side by side, pruned ones beside their originals.",
    "export": "Export a model to ONNX, torch.export or plain timm.",
    "push": "Upload a run to the Hugging Face Hub with a model card.",
    "report": "Compare runs and sweeps: the trade-off of accuracy and cost.",
    "recipes": "List, show, copy and check the recipes and sweeps of the package.",
    "models": "List the models that slimvit can prune.",
}
"""Name -> its line in the help. Command `x` is the function `x_command` in module `x`."""


class _UserError(click.ClickException):
    """A `SlimvitError` as one line on stderr, with its own exit code."""

    def __init__(self, error: SlimvitError) -> None:
        super().__init__(in_message(str(error)))
        self.exit_code = error.exit_code  # type: ignore[misc]


class Commands(click.Group):
    """A group that imports the module of a command on demand and prints user errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of one command and return the command."""
        if name not in COMMANDS:
            ctx.fail(f"No such command {name!r}{nearest(name, COMMANDS)}.")
        return getattr(importlib.import_module(f"slimvit.cli.{name}"), f"{name}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and print a user's error as one line."""
        try:
            return super().invoke(ctx)
        except SlimvitError as error:
            raise _UserError(error) from None
        except click.ClickException as error:
            error.message = in_message(error.message)  # type: ignore[misc]
            raise
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise _UserError(SlimvitError(f"{error.filename}: the name is too long; give a shorter one")) from None

    def main(self, *args: Any, **more: Any) -> Any:
        """Run the command line; where the output cannot be written, say so in one line and end with 1."""
        try:
            return super().main(*args, **more)
        except OSError as error:
            if not _stdout_fails():
                raise
            from slimvit.cli.shared import echo

            echo(f"Error: the output cannot be written: {error.strerror}", err=True)
            sys.exit(1)


def _stdout_fails() -> bool:
    """Whether stdout cannot take one more line; what is left in it is dropped, so that Python's last flush succeeds."""
    try:
        print(flush=True)
    except OSError:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return True
    return False


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="slimvit")
def main() -> None:
    """Make pretrained Vision Transformers smaller and faster: prune heads, MLP neurons and branches, repair in closed
    form.

    \b
    Example:
      slimvit prune vit_digits --data digits --ratio 0.5 --out runs/digits
    """
