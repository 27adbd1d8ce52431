"""The command line. One command a file; each imports what it runs only when it is called, so that help is instant."""

from __future__ import annotations

import importlib
from typing import Any

import click

from slimvit.utils.errors import SlimvitError, nearest

COMMANDS = {
    "prune": "Remove attention heads, repair, fine-tune, measure, save.",
    "run": "Carry out a recipe.",
    "sweep": "Carry out many runs that differ in a few settings.",
    "finetune": "Train a slimmed model further.",
    "evaluate": "Measure a model's accuracy, size and cost.",
    "predict": "Say what is in some images, alone or beside another model.",
    "inspect": "Show a model's blocks, heads, parameters and MACs.",
    "bench": "Time models side by side, slim ones beside their originals.",
    "export": "Write a model as ONNX, as a torch.export program, or for plain timm.",
    "push": "Put a run on the Hugging Face Hub, with a model card.",
    "report": "Put runs and sweeps side by side: the trade-off.",
    "recipes": "List, show, copy and check the shipped recipes and sweeps.",
    "models": "List the models slimvit can prune.",
}
"""Name -> one line for the overview. The command itself is `command` in the module of that name."""


class _Told(click.ClickException):
    """A user's error as one line, with its own exit code."""

    def __init__(self, error: SlimvitError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]


class Commands(click.Group):
    """Finds a command's module only when the command is wanted, and turns user errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            ctx.fail(f"No such command {name!r}{nearest(name, COMMANDS)}.")
        return importlib.import_module(f"slimvit.cli.{name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SlimvitError as error:
            raise _Told(error) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="slimvit")
def main() -> None:
    """Make pretrained Vision Transformers smaller: fewer attention heads, repaired in closed form.

    \b
    Example:
      slimvit prune vit_digits --data digits --ratio 0.5 --out runs/digits
    """
