"""A batch of one picture, for notebooks."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from torch import Tensor

from framework.data.images import ImageLoader
from framework.data.sample import EditBatch, EditSample, Frame
from framework.errors import SampleError, SettingsError


def single_batch(
    image: str | PathLike[str] | Image.Image | Tensor,
    sample: EditSample,
    *,
    size: tuple[int, int] | None,
    multiple: int,
    channels: int = 3,
) -> EditBatch:
    """Load one picture as a batch.

    Args:
        image: Path, PIL image, or tensor [3, H, W] in [-1, 1] that is taken as it is.
        sample: Its description; a path replaces the sample's.
        size: Rows and columns that the network wants; a picture is cut from the centre. None keeps its own size.
        multiple: Sides must be multiples of this.
        channels: 3 for colour, 1 for grey.

    Raises:
        SampleError: The picture cannot be used.
        SettingsError: A tensor of a shape that the network cannot take.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or any(side % multiple for side in image.shape[1:]):
            raise SettingsError(
                [
                    f"image of shape {list(image.shape)} does not suit the network; give [channels, rows, columns] "
                    f"with sides that are multiples of {multiple}."
                ]
            )
        rows, columns = image.shape[1:]
        frame = Frame((rows, columns), (0, 0, rows, columns), (rows, columns))
        return EditBatch((sample,), image[None].float(), None, (frame,), ((),))
    loader = ImageLoader(size, multiple=multiple, resize="native" if size is None else "crop", channels=channels)
    if isinstance(image, Image.Image):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            image.save(path)
            batch = loader.batch([replace(sample, image=path)])
    else:
        batch = loader.batch([replace(sample, image=Path(image))])
    if batch.failed:
        raise SampleError(batch.failed[0][1])
    return batch
