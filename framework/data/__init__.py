"""Data sets: descriptions of samples, readers, image loading, and the data module that groups, shards and resumes."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "sample": ["EditBatch", "EditSample", "Frame", "RunLengthMask"],
        "readers": ["DataSource", "Entry", "EntrySource", "Folder", "Manifest", "PieBench", "TI2I", "ZeroShot"],
        "images": ["ImageLoader"],
        "frames": ["restore", "to_picture"],
        "lock": ["content_hash", "manifest_lines"],
        "module": ["EditDataModule", "ShardSampler", "plan_batches"],
    },
)
