"""The files of a model: configs first, weights later, from a folder or the hub; safetensors only, never code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from framework.backbones.names import bundled_models, hub_id, local_folder, other_names
from framework.errors import SettingsError

_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


class _UnreachableError(SettingsError):
    """The hub did not answer and the file is not among earlier downloads."""


class ModelFiles:
    """Configs and weights of one model, whose components lie in sub-folders as diffusers writes them.

    For a hub id the commit is settled when the first config is read, and everything later comes from that commit.

    Args:
        model: Folder, bundled or maintained name, or hub id.
        revision: Branch, tag or commit on the hub; None is its main branch.
        variant: Variant of the weights in the file names, such as "fp16".
        cache_dir: Where downloads are kept; None is the hub's own cache.
        local_files_only: Use what was downloaded before and ask nobody (also: HF_HUB_OFFLINE=1).
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.model = model
        self.variant = variant
        self.commit: str | None = None
        self._revision = revision
        self._cache = cache_dir
        self._local_only = local_files_only
        self.folder = local_folder(model)
        self.repository = None if self.folder else hub_id(model)
        if self.folder is not None and not self.folder.is_dir():
            raise self.problem(
                f"there is no folder {self.folder}; give a diffusers folder or a hub id such as owner/name "
                f"({other_names(model)})."
            )
        if self.folder is not None and revision is not None:
            raise self.problem(
                f"revision={revision!r} belongs to a hub id, but this is the folder {self.folder}; leave it out."
            )

    @property
    def name(self) -> str:
        """What the model is called, wherever its folder is: the hub id, the short name, or the folder's last part."""
        return self.repository or (
            self.model if self.model in bundled_models() else Path(self.folder or "").resolve().name
        )

    def config(self, *names: str, optional: bool = False) -> dict[str, Any] | None:
        """Read the first of several json files that exists.

        Args:
            names: Places relative to the model.
            optional: Return None instead of raising when none exists.

        Raises:
            SettingsError: The model cannot be reached, has no such file, or the file is not a json object.
        """
        unreachable = None
        for name in names:
            try:
                path = self._small_file(name)
            except _UnreachableError as error:
                # Without the hub, a file that the model does not have looks like one that was never downloaded.
                path, unreachable = None, error
            if path is None:
                continue
            try:
                value = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError) as error:
                raise self.problem(
                    f"{name} cannot be read as json ({error}); download or export the model again."
                ) from None
            if not isinstance(value, dict):
                raise self.problem(
                    f"{name} holds {type(value).__name__} where a json object belongs; export the model again."
                )
            return value
        if optional:
            return None
        if unreachable is not None:
            raise unreachable
        raise self.problem(f"it has no {' or '.join(names)}, so it is not a model that this backbone can read.")

    def download(self, weights: Mapping[str, str], others: Sequence[str] = ()) -> Path:
        """Return a folder that holds the weights, downloading them if the model is on the hub.

        Args:
            weights: Component's folder ("" is the model's own) -> stem of its weights, such as "model".
            others: Patterns of further files that are needed.

        Raises:
            SettingsError: Weights are missing, pickled or broken, or cannot be reached.
        """
        folder = self.folder
        if folder is None:
            # Configs were read already; those of sharded weights and of tokenizers are small.
            from huggingface_hub import snapshot_download

            patterns = [name for place, stem in weights.items() for name in self._weight_names(place, stem)]
            with self._reaching():
                folder = Path(
                    snapshot_download(
                        str(self.repository),
                        revision=self.commit or self._revision,
                        cache_dir=self._cache,
                        local_files_only=self._local_only,
                        allow_patterns=[*patterns, *others],
                    )
                )
        for place, stem in weights.items():
            for path in self.weight_files(folder, place, stem):
                self._check(path)
        return folder

    def weight_files(self, folder: Path, place: str, stem: str) -> list[Path]:
        """Return the safetensors files of one component, which must exist."""
        single, index, pattern = (Path(name).name for name in self._weight_names(place, stem))
        home = folder / place
        if (home / single).is_file():
            return [home / single]
        shards = sorted(home.glob(pattern))
        if shards and (home / index).is_file():
            return shards
        raise self.problem(self._why_missing(folder, home, f"{place}/{single}".lstrip("/")))

    def fingerprint(self, weights: Mapping[str, str]) -> str:
        """Return what tells these weights from any other: the hub's commit, or a hash of the folder's files."""
        if self.commit is not None:
            return self.commit
        assert self.folder is not None
        digest = hashlib.sha256()
        for place, stem in weights.items():
            for path in self.weight_files(self.folder, place, stem):
                digest.update(f"{place}/{path.name}\0".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _weight_names(self, place: str, stem: str) -> tuple[str, str, str]:
        """Names of the single file, of the index of a sharded one, and the pattern of its shards."""
        variant = f".{self.variant}" if self.variant else ""
        base = f"{place}/{stem}" if place else stem
        return (
            f"{base}{variant}.safetensors",
            f"{base}.safetensors.index{variant}.json",
            f"{base}{variant}-*-of-*.safetensors",
        )

    def _small_file(self, name: str) -> Path | None:
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with self._reaching():
            try:
                path = Path(
                    hf_hub_download(
                        str(self.repository),
                        name,
                        revision=self.commit or self._revision,
                        cache_dir=self._cache,
                        local_files_only=self._local_only,
                    )
                )
            except EntryNotFoundError as error:
                # Offline the cache cannot tell "not there" from "never downloaded", except when its commit is known.
                if isinstance(error, LocalEntryNotFoundError) and self.commit is None:
                    raise
                return None
        if self.commit is None:
            inner = len(Path(name).parts)
            self.commit = path.parents[inner - 1].name
        return path

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say in words why the hub did not answer; its own messages are long, and requests in them may hold headers."""
        from huggingface_hub import errors as hub

        name, revision = self.repository, self._revision or "main"
        try:
            yield
        except hub.GatedRepoError:
            raise self.problem(
                f"{name} is gated: accept its licence on its page and log in with a token that may read it (`hf auth "
                "login` or HF_TOKEN)."
            ) from None
        except hub.RepositoryNotFoundError:
            raise self.problem(
                f"the hub knows no model {name} that you may read: check the spelling, or log in if it is private; "
                f"{other_names(self.model)}."
            ) from None
        except hub.RevisionNotFoundError:
            raise self.problem(f"{name} has no revision {revision!r}; give a branch, tag or commit of it.") from None
        except hub.HFValidationError:
            raise self.problem(
                f"there is no such folder, and {name!r} is no hub id, which reads owner/name; "
                f"{other_names(self.model)}."
            ) from None
        except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError) as error:
            problem = self.problem(
                f"there is no such folder, and as a hub id, {name} at {revision!r} was never downloaded and the hub "
                f"cannot be reached ({type(error).__name__}; HF_HUB_OFFLINE or local_files_only may forbid it); "
                f"connect once, or give a local folder; {other_names(self.model)}."
            )
            raise _UnreachableError(problem.problems) from None
        except hub.HfHubHTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", "no status")
            hint = "the token is wrong or expired" if status == 401 else "try again later"
            raise self.problem(f"the hub answered {status} for {name}; {hint}.") from None
        except Exception as error:
            # The hub's client lets errors of its transport (httpx, requests) through when a download breaks off.
            if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in ("httpx", "requests"):
                raise
            raise self.problem(
                f"the download of {name} broke off ({type(error).__name__}); run again, what is there is kept."
            ) from None

    def _why_missing(self, folder: Path, home: Path, wanted: str) -> str:
        others = self._names(folder, home)
        safe = sorted(name for name in others if name.endswith(".safetensors"))
        pickled = sorted(name for name in others if name.endswith(_PICKLED))
        if safe:
            return (
                f"it has no {wanted}, but {', '.join(safe)}; set `variant` to the word before .safetensors, "
                "or leave it out."
            )
        if pickled:
            return (
                f"it has no {wanted}, only the pickled {', '.join(pickled)}, which can run code when loaded and is "
                "refused; use a model "
                "with safetensors, or convert it yourself with diffusers (save_pretrained(..., "
                "safe_serialization=True))."
            )
        return f"it has no {wanted}; the download or copy is incomplete, get it again."

    def _names(self, folder: Path, home: Path) -> list[str]:
        if self.folder is not None:
            return [str(path.relative_to(folder)) for path in home.glob("*")]
        from huggingface_hub import HfApi

        place = "" if home == folder else f"{home.relative_to(folder).as_posix()}/"
        try:
            names = HfApi().list_repo_files(str(self.repository), revision=self.commit)
        except Exception:
            # The list only makes a message better, which stands whatever fails here.
            return []
        return [name for name in names if name.startswith(place) and "/" not in name[len(place) :]]

    def _check(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise self.problem(
                f"{path} is not a complete safetensors file ({error}); remove it and get it again, the download was "
                "cut or the disk was full."
            ) from None

    def problem(self, text: str) -> SettingsError:
        """Return an error that names the model."""
        return SettingsError([f"model {self.model!r}: {text}"])
