"""What a sample is made of, as a hash: a run refuses to mix results of different contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from framework.data.files import require_regular
from framework.data.sample import EditSample, RunLengthMask
from framework.errors import SampleError


def content_hash(sample: EditSample) -> str:
    """Hash everything a result can depend on but the sample's id: picture and mask by their bytes, prompts, extra.

    Where the files lie does not matter, so a data set may be moved.

    Returns:
        SHA-256 as 64 hexadecimal digits, over canonical JSON.

    Raises:
        SampleError: The picture or the mask cannot be read.
    """
    content: dict[str, Any] = {
        "image": _file_hash(sample.image),
        "mask": _mask_content(sample.mask),
        "source": sample.source,
        "target": sample.target,
        "negative": sample.negative,
        "instruction": sample.instruction,
        "edit_type": sample.edit_type,
        "blend": [sample.blend_source, sample.blend_target],
        "extra": dict(sample.extra),
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def manifest_lines(samples: Iterable[EditSample], root: Path) -> list[dict[str, str | None]]:
    """Describe a data set for the lock of a run, in its order.

    Args:
        samples: The data set.
        root: Folder that the paths of pictures are given relative to (`DataSource.folder`).

    Returns:
        Per sample its `id`, the `image` path (with "/"; absolute where it lies outside of the root), its content
        `hash`, and `problem`: why there is no hash, else None.
    """
    return [_line(sample, root) for sample in samples]


def canonical_json(value: Any) -> str:
    """Write JSON in one way only: sorted keys, no blanks, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _line(sample: EditSample, root: Path) -> dict[str, str | None]:
    inside = sample.image.is_relative_to(root)
    image = sample.image.relative_to(root).as_posix() if inside else sample.image.as_posix()
    try:
        digest, problem = content_hash(sample), None
    except SampleError as error:
        digest, problem = None, str(error)
    return {"id": sample.id, "image": image, "hash": digest, "problem": problem}


def _mask_content(mask: Path | RunLengthMask | None) -> Any:
    if mask is None:
        return None
    if isinstance(mask, RunLengthMask):
        return {"pairs": list(mask.pairs), "size": mask.size and list(mask.size), "border": mask.border}
    return _file_hash(mask)


def _file_hash(path: Path) -> str:
    try:
        require_regular(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as problem:
        raise SampleError(f"{path.name!r} cannot be read: {problem.strerror or problem}") from None
