"""What a run will need, said before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.errors import SampleError, SettingsError

if TYPE_CHECKING:
    from framework.data.readers.source import DataSource
    from framework.module import EditModule

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def feature_note(module: EditModule, source: DataSource) -> str | None:
    """Say how much memory the features of the network take that inversions keep; None where they keep none.

    Args:
        module: The method.
        source: The data set; its first readable picture says the size.
    """
    backbone = module.backbone
    loader = source.loader(backbone.image_size, multiple=backbone.multiple, channels=backbone.image_channels)
    for sample in source.samples():
        try:
            size = loader.network_size(sample)
        except (SampleError, SettingsError):
            continue
        latent = tuple(side // backbone.latent_factor for side in size)
        each = module.draws * module.inversion.feature_bytes(
            backbone.sites(), latent, module.steps, backbone.dtype.itemsize
        )
        if not each:
            return None
        return (
            f"{type(module).__name__} keeps features of its inversions: {in_units(each)} per image of {size[0]} x "
            f"{size[1]} pixels, {in_units(each * source.batch_size)} in a batch of {source.batch_size}"
        )
    return None


def in_units(count: int) -> str:
    """Write a number of bytes in the largest unit of which there is one."""
    power = max(k for k in range(len(_UNITS)) if k == 0 or count >= 1024**k)
    return f"{count / 1024**power:.{1 if power else 0}f} {_UNITS[power]}"
