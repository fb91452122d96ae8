"""The report: one html page that opens from the disk, with everything it needs but the pictures, or with them."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.report.document import build_document
from framework.report.pictures import Embedded, Linked
from framework.report.results import ResultsReader
from framework.run.files import write_file
from framework.run.folders import RunFolder, find_runs

NAME = "report.html"
ASSETS = Path(__file__).parent / "assets"
_MODULES = ("dom", "summary", "grid", "detail", "charts", "view")
_START = 'show(document.querySelector("main"), JSON.parse(document.querySelector("#document").textContent));'
_IMPORT = re.compile(r"^import .*?;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def write_report(paths: Sequence[Path], output: Path | None = None, *, single_file: bool = False) -> Path:
    """Write the report of some runs, at any time.

    Args:
        paths: Run folders or folders of runs.
        output: The page; `report.html` in the folder that is given, or in the working directory for several.
        single_file: Put the pictures into the page, rather than link to the runs' files and write thumbnails to
            `<page>_files/` beside it.

    Returns:
        The page.

    Raises:
        SettingsError: A path holds no run.
        StoreError, OSError: The page cannot be written.
    """
    runs = find_runs(paths)
    if output is None:
        output = paths[0] / NAME if len(paths) == 1 else Path(NAME)
    output.parent.mkdir(parents=True, exist_ok=True)
    pictures = Embedded() if single_file else Linked(output)
    document = build_document(_title(paths, runs), [ResultsReader(run).read() for run in runs], pictures)
    if isinstance(pictures, Linked):
        document["problems"] += pictures.finish()
    write_file(output, render_page(document).encode("utf-8", "backslashreplace"))
    return output


def after_run(root: Path) -> str:
    """Leave a report in the output folder of a run that has ended; returns where it is."""
    return str(write_report([root]))


def render_page(document: dict[str, Any]) -> str:
    """Return the page of a document. Nothing but its own script and style runs, and nothing is fetched but pictures."""
    script, style = script_text(), (ASSETS / "report.css").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src 'self' file: data:; "
        "base-uri 'none'; form-action 'none'"
    )
    title = html.escape(str(document["title"]))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title} - invedit report</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main><noscript>This page draws itself with the script that it contains; allow scripts to see it.</noscript></main>
<script type="application/json" id="document">{json_for_html(document)}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def script_text() -> str:
    """Join the modules of the page into one: a page from the disk may not import others."""
    texts = [(ASSETS / f"{name}.js").read_text("utf-8") for name in _MODULES]
    return "".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts) + _START


def json_for_html(value: Any) -> str:
    """Encode json so that nothing in it can end the element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _title(paths: Sequence[Path], runs: Sequence[RunFolder]) -> str:
    if len(paths) == 1:
        return paths[0].resolve().name
    return ", ".join(dict.fromkeys(path.resolve().name for path in paths)) if len(paths) <= 3 else f"{len(runs)} runs"
