"""Readers of data sets: each turns a folder or a manifest into a list of checked samples."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "source": ["DataSource", "EntrySource"],
        "entry": ["Entry"],
        "folder": ["Folder"],
        "manifest": ["Manifest"],
        "pie_bench": ["PieBench"],
        "ti2i": ["TI2I"],
        "zero_shot": ["ZeroShot"],
    },
)
