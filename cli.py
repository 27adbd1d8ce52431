"""Launcher for a checkout: `python cli.py ...` does what the installed `slimvit ...` does."""

from slimvit.cli import main

if __name__ == "__main__":
    main(prog_name="slimvit")
