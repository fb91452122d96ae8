"""The TensorBoard plugin: samples by methods with a before/after slider, and the noise panel, while a run goes on.

It reads the run folders below TensorBoard's log directory, not the event files, and shows the report's own page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import Request, Response

from framework.report.live import LiveRuns
from framework.report.page import ASSETS

NAME = "invedit"
_STATIC = {
    **{f"{name}.js": "text/javascript" for name in ("plugin", "view", "dom", "summary", "grid", "detail", "charts")},
    "report.css": "text/css",
}
_A_YEAR = 365 * 24 * 3600


class Loader(base_plugin.TBLoader):  # type: ignore[misc]
    """What the entry point `tensorboard_plugins` names."""

    def load(self, context: base_plugin.TBContext) -> InveditPlugin | None:
        """Make the plugin; None where there is no local log directory."""
        logdir = str(context.logdir or "")
        return InveditPlugin(context) if logdir and "://" not in logdir else None


class InveditPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Serves the page's modules, the document of the runs, and their pictures.

    Args:
        context: TensorBoard's; only its log directory is used.
    """

    plugin_name = NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._runs = LiveRuns(Path(context.logdir).expanduser())

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the routes."""
        static = {f"/{name}": self._static(name, kind) for name, kind in _STATIC.items()}
        return {**static, "/data": self._data, "/picture": self._picture, "/figure": self._figure}

    def is_active(self) -> bool:
        """Whether there is a run below the log directory."""
        return bool(self._runs.groups())

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return the module that draws the tab. It looks for news itself."""
        return base_plugin.FrontendMetadata(es_module_path="/plugin.js", tab_name="Edits", disable_reload=True)

    def _static(self, name: str, kind: str) -> Any:
        @Request.application
        def serve(request: Request) -> Response:
            return _respond(request, (ASSETS / name).read_bytes(), kind)

        return serve

    @property
    def _data(self) -> Any:
        @Request.application
        def serve(request: Request) -> Response:
            answer = self._runs.answer(request.args.get("group", ""), request.args.get("tag", ""))
            return _respond(request, json.dumps(answer._asdict(), allow_nan=False), "application/json")

        return serve

    @property
    def _picture(self) -> Any:
        @Request.application
        def serve(request: Request) -> Response:
            group, run, sample, file = (request.args.get(key, "") for key in ("group", "run", "sample", "file"))
            found = self._runs.picture(group, run, sample, file, small="small" in request.args)
            return _found(request, found)

        return serve

    @property
    def _figure(self) -> Any:
        @Request.application
        def serve(request: Request) -> Response:
            group, run, file = (request.args.get(key, "") for key in ("group", "run", "file"))
            return _found(request, self._runs.figure(group, run, file))

        return serve


def _found(request: Request, found: tuple[bytes, str] | None) -> Response:
    if found is None:
        return _respond(request, "There is no such picture in the records.", "text/plain", 404)
    # The address holds the content's hash or time, so that it may be kept.
    return _respond(request, found[0], found[1], expires=_A_YEAR if "v" in request.args else 0)


def _respond(request: Request, content: bytes | str, kind: str, code: int = 200, expires: int = 0) -> Response:
    response: Response = http_util.Respond(request, content, kind, code=code, expires=expires)
    return response
