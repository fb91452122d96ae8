"""From a sample's id to the name of its folder, safe on every file system."""

from __future__ import annotations

import hashlib
import re

_LONGEST = 80
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._+=@,-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def folder_name(sample_id: str) -> str:
    """Return the folder of a sample: its id, or what is left of it and a hash where the id is no safe name.

    Kept are names of up to 80 ASCII letters, digits and . _ + = @ , - that do not begin with a dot or dash, do not end
    with a dot, and are no device of Windows. Everything else (path separators, `..`, other scripts, control characters,
    long names) gets the first ten digits of the id's SHA-256 at its end, so that different ids keep different folders.
    """
    safe = _FORBIDDEN.sub("_", sample_id)[:_LONGEST].lstrip(".-").rstrip(".")
    if safe == sample_id and safe and not _RESERVED.fullmatch(safe):
        return safe
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{safe or 'sample'}-{digest}" if not _RESERVED.fullmatch(safe) else f"sample-{safe}-{digest}"
