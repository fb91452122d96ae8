"""Public names of a package that are imported when first used, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_exports(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """Build the `__getattr__` and `__all__` of a package whose names live in its sub-modules.

    Args:
        package: `__name__` of the package.
        names: Sub-module -> public names that it defines.

    Returns:
        The module-level `__getattr__` (PEP 562) and the sorted list of public names.
    """
    home = {name: module for module, group in names.items() for name in group}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(sorted(home))}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    return load, sorted(home)
