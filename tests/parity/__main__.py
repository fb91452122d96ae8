"""`python -m tests.parity DIR [--models DIR] [--json]`: replay a folder of recorded cases."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.parity.case import find_cases
from tests.parity.runner import run

BUNDLED = Path(__file__).resolve().parent.parent / "parity_data" / "models"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder of cases (json + safetensors), searched to any depth"
    )
    parser.add_argument(
        "--models", type=Path, help="folder of the tiny models; default: DIR/../models or the bundled ones"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as json lines")
    options = parser.parse_args(arguments)
    beside = options.folder.resolve().parent / "models"
    models = options.models or (beside if beside.is_dir() else BUNDLED)
    return run(find_cases(options.folder), models, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
