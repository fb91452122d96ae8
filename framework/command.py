"""What a sub-command of `invedit` is; other packages add theirs through the entry-point group `invedit.commands`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple


class Command(NamedTuple):
    """One sub-command. Its module is imported whenever help is shown, so heavy imports belong inside `run`.

    Attributes:
        help: One line for the list of commands.
        configure: Adds the arguments to the sub-command's parser.
        run: Does the work and returns the exit code: 0, 1 if a sample failed, 2 if the settings are invalid.
    """

    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
