"""Observers of inversions and edits: what they measure is committed with each sample and folded when a run ends."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "images": ["Images"],
        "mask_overlap": ["MaskOverlap"],
        "metrics": ["Metrics"],
        "noise_correlation": ["NoiseCorrelation"],
        "noise_statistics": ["NoiseStatistics"],
        "progress": ["Progress"],
        "throughput": ["Throughput"],
        "trajectory": ["Trajectory"],
    },
)
