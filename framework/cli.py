"""The command line: `invedit COMMAND ...`. Commands come from the entry-point group `invedit.commands`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from framework.command import Command
from framework.errors import SettingsError

GROUP = "invedit.commands"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        Exit code: 0; 1 if a sample failed; 2 if the settings or the command line are invalid; 130 if interrupted.
    """
    commands = find_commands()
    if not commands:
        print("invedit: no command is installed; install the project first: pip install -e .", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(
        prog="invedit",
        description="Text-guided image editing by diffusion and flow inversion: run, compare and measure methods.",
        epilog="`invedit COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in commands.items():
        command.configure(subparsers.add_parser(name, help=command.help, description=command.help))
    parsed, rest = parser.parse_known_args(arguments)
    # argparse gives words after an option to nobody; overrides may stand anywhere.
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognised arguments: {' '.join(rest)}; see `invedit {parsed.command} --help`")
    if overrides:
        parsed.overrides = [*parsed.overrides, *overrides]
    try:
        code = commands[parsed.command].run(parsed)
        sys.stdout.flush()
        return code
    except SettingsError as error:
        report(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has read enough; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def report(error: SettingsError) -> None:
    """Print all problems of some settings, one per line."""
    count = len(error.problems)
    print(f"invedit: {count} problem{'s' if count != 1 else ''}", file=sys.stderr)
    for problem in error.problems:
        print("  " + problem.replace("\n", "\n    "), file=sys.stderr)


def find_commands() -> dict[str, Command]:
    """Load all commands that are installed; one that cannot be loaded is named in a warning and left out."""
    found: dict[str, Command] = {}
    entries = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)
    for entry in entries:
        try:
            command = entry.load()
            if not isinstance(command, Command):
                raise TypeError(f"it is a {type(command).__name__}, not a framework.command.Command")
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(
                f"invedit: warning: the command {entry.name!r} ({entry.value}) is left out: {reason}", file=sys.stderr
            )
            continue
        found.setdefault(entry.name, command)
    return found


def _version() -> str:
    try:
        return importlib.metadata.version("invedit")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
