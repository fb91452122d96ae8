"""`python -m tests.run.toy_main EXPERIMENT OUTPUT [key=value ...]`: `invedit run` where it is not installed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from framework.run.commands import run

if __name__ == "__main__":
    experiment, output, *overrides = sys.argv[1:]
    known = {"force": False, "allow_changed": False, "print_config": False}
    sys.exit(run.run(argparse.Namespace(experiment=experiment, output=Path(output), overrides=overrides, **known)))
