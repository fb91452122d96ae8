"""What the metrics that look through a network share: its weights, whether they can be had, and what names them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from framework.backbones.files import ModelFiles
from framework.errors import SettingsError
from framework.evaluation.metric import Metric, MetricInput, Values


class NetworkMetric(Metric):
    """A metric that looks at batches of pictures through a network.

    Attributes:
        model: Folder or hub id of the network.
        download: Whether a hub id may be downloaded.
    """

    model: str | None
    download: bool

    @abstractmethod
    def network(self) -> Any:
        """The network, loaded once for all metrics that share it.

        Raises:
            SettingsError: Its weights cannot be had, or are not its.
        """

    @property
    def unavailable(self) -> str | None:
        """Why the weights cannot be had."""
        try:
            self.network()
        except SettingsError as error:
            return " ".join(error.problems)
        return None

    @property
    def weights(self) -> str | None:
        """The hub's commit, or a hash of the file."""
        return None if self.model is None else _fingerprint(self.model, self.download)

    def measure(self, item: MetricInput) -> Values:
        """Measure one edit."""
        return self.measure_batch([item])[0]

    @abstractmethod
    def measure_batch(self, items: Sequence[MetricInput]) -> Sequence[Values]:
        """Measure several edits in few calls."""


def model_files(model: str, download: bool) -> ModelFiles:
    """Return the files of a folder or hub id, which is fetched only where that was allowed."""
    return ModelFiles(model, local_files_only=not download)


@lru_cache(maxsize=16)
def _fingerprint(model: str, download: bool) -> str | None:
    files = model_files(model, download)
    files.config("config.json", optional=True)  # settles the commit of a hub id
    return files.fingerprint({"": "model"}) if files.folder is not None else files.commit
