"""Run the command line: `python -m slimvit`."""

from slimvit.cli import main

if __name__ == "__main__":
    main(prog_name="slimvit")
