"""Picture files to 8-bit pixels: what is refused before decoding, and what every kind of file is turned into."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from framework.data.files import require_regular
from framework.errors import SampleError

_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo", ".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_DECODERS = tuple(kind for kind in _SUFFIXES if kind != "MPO")  # opened by the JPEG decoder
_KNOWN_SUFFIXES = frozenset(suffix for group in _SUFFIXES.values() for suffix in group)
_ORIENTATION = 0x0112
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Limits:
    """What is accepted.

    Attributes:
        max_pixels: Largest number of pixels, checked before decoding.
        min_side: Shortest side in pixels.
        max_ratio: Largest ratio of the sides.
        strict: Whether further frames of an animation are an error.
    """

    max_pixels: int = 8192 * 8192
    min_side: int = 8
    max_ratio: float = 8.0
    strict: bool = False


@dataclass(frozen=True)
class Decoded:
    """A decoded file.

    Attributes:
        picture: RGB, or RGBA where the file has transparency, turned as EXIF says.
        notes: What had to be decided.
    """

    picture: Image.Image
    notes: tuple[str, ...]


def header_size(path: Path, limits: Limits) -> tuple[int, int]:
    """Read rows and columns as a viewer shows them, from the header wherever the format keeps its EXIF block there.

    Raises:
        SampleError: The file is no picture or beyond the limits.
    """
    with _opened(path, limits) as image:
        return _shown_size(image)


def decode(path: Path, limits: Limits) -> Decoded:
    """Decode a picture file to 8-bit RGB or RGBA, first frame only.

    16-bit grey is scaled by 1/257, float grey in [0, 1] by 255, colour profiles other than sRGB are applied, EXIF
    rotation is always applied.

    Raises:
        SampleError: The file is missing, empty, truncated, no picture, named wrongly, or beyond the limits.
    """
    notes: list[str] = []
    with _opened(path, limits) as image:
        _check_frames(path, image, limits, notes)
        is_deep = image.mode == "RGB" or image.mode.endswith("A")
        if is_deep and any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
            notes.append("16 bits per channel cut to 8")
        try:
            image.load()
        except Exception as problem:  # decoders raise whatever a damaged file leads them to
            raise SampleError(f"{path.name!r} cannot be decoded: {_said(problem)}") from None
        picture = _to_rgb(path, _turned(image, notes), notes)
    return Decoded(picture, tuple(notes))


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[Image.Image]:
    try:
        require_regular(path)
        if path.stat().st_size == 0:
            raise SampleError(f"{path.name!r} is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
            image = Image.open(path, formats=_DECODERS)
    except FileNotFoundError:
        raise SampleError(f"there is no file {path.name!r} any more") from None
    except Image.DecompressionBombError:
        raise SampleError(f"{path.name!r} has more than the allowed {limits.max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise SampleError(f"{path.name!r} is not a picture of a known format ({', '.join(_DECODERS)})") from None
    except SampleError:
        raise
    except Exception as problem:
        raise SampleError(f"{path.name!r} cannot be opened: {_said(problem)}") from None
    with image:
        _check_name(path, image)
        _check_size(path, image, limits)
        yield image


def _check_name(path: Path, image: Image.Image) -> None:
    suffix, kind = path.suffix.lower(), image.format or ""
    if suffix in _KNOWN_SUFFIXES and suffix not in _SUFFIXES.get(kind, ()):
        raise SampleError(f"{path.name!r} is a {kind} file by its content; rename it to {_SUFFIXES[kind][0]}")


def _check_size(path: Path, image: Image.Image, limits: Limits) -> None:
    columns, rows = image.size  # before EXIF is asked for: that decodes some PNG files
    size = f"{path.name!r} has {columns} x {rows} pixels"
    if rows * columns > limits.max_pixels:
        raise SampleError(f"{size}, more than the allowed {limits.max_pixels}; make it smaller or raise max_pixels")
    if min(rows, columns) < limits.min_side:
        raise SampleError(f"{size}; the shortest side must have at least {limits.min_side} (min_side)")
    if max(rows, columns) > limits.max_ratio * min(rows, columns):
        raise SampleError(f"{size}; the sides' ratio may be at most {limits.max_ratio:g} (max_ratio)")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block must not cost the picture
        return 1


def _shown_size(image: Image.Image) -> tuple[int, int]:
    # Pillow turns TIFF files itself and has swapped their size already.
    is_turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if is_turned else (image.height, image.width)


def _check_frames(path: Path, image: Image.Image, limits: Limits, notes: list[str]) -> None:
    if image.format == "MPO":  # a photograph with a preview or a depth map behind it
        return
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception as problem:
        raise SampleError(f"{path.name!r} cannot be decoded: {_said(problem)}") from None
    if frames > 1 and limits.strict:
        raise SampleError(f"{path.name!r} has {frames} frames; give a single picture or set strict: false")
    if frames > 1:
        image.seek(0)
        notes.append(f"first frame of {frames}")


def _turned(image: Image.Image, notes: list[str]) -> Image.Image:
    orientation = _orientation(image)
    if orientation not in range(2, 9):
        return image
    notes.append(f"turned as EXIF says (orientation {orientation})")
    return ImageOps.exif_transpose(image)


def _to_rgb(path: Path, image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode in _SIXTEEN or (image.mode == "I" and image.format in ("PNG", "PPM")):
        notes.append("16 bit grey scaled to 8 by 1/257")
        return _grey(np.asarray(image).astype(np.float64) / 257)
    if image.mode == "I":
        raise SampleError(f"{path.name!r} has 32-bit integer pixels; save it with 8 or 16 bits")
    if image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise SampleError(f"{path.name!r} has float pixels outside of [0, 1]; scale them")
        notes.append("float grey scaled to 8 bit by 255")
        return _grey(values * 255)
    has_alpha = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    if image.mode in ("P", "PA", "1", "La", "RGBa") or (has_alpha and image.mode not in ("RGBA", "LA")):
        image = image.convert("RGBA" if has_alpha else "RGB")
    profiled = _with_profile(image, notes)
    try:
        return profiled.convert("RGBA" if has_alpha else "RGB")
    except ValueError:
        raise SampleError(f"{path.name!r} has pixels of mode {image.mode}; save it as RGB") from None


def _with_profile(image: Image.Image, notes: list[str]) -> Image.Image:
    """Convert to sRGB with the embedded profile, where there is another one and the pixels fit it."""
    embedded = image.info.get("icc_profile")
    if not embedded or image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        name = ImageCms.getProfileDescription(profile).strip()
        if "srgb" in name.lower() and image.mode != "CMYK":
            return image
        base, alpha = (
            (image.convert(image.mode[:-1]), image.getchannel("A")) if image.mode[-1] == "A" else (image, None)
        )
        converted = ImageCms.profileToProfile(base, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        if converted is None:
            return image
        if alpha is not None:
            converted.putalpha(alpha)
    except Exception as problem:  # LittleCMS refuses damaged or mismatched profiles in many ways
        notes.append(f"colour profile ignored ({_said(problem)})")
        return image
    notes.append(f"colour profile {name!r} applied")
    return converted


def _grey(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def _said(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__
