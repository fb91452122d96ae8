"""The shapes world: small scenes whose captions, edits, ground truth and masks are known exactly, and models of it."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "scene": ("Scene", "Thing", "caption", "parse"),
        "render": ("render", "silhouette", "paint"),
        "edits": ("EDITS", "Edit", "edit_mask", "sample_edit"),
        "sample": ("sample_scene",),
    },
)
