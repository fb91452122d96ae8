"""Metrics of edits: the protocol they follow, what they may ask for, and comparisons that are paired by image."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "generation": ["generate"],
        "metric": ["Codec", "Figure", "Metric", "MetricInput"],
        "paired": ["Paired", "paired_difference"],
        "pictures": ["LPIPS", "PixelMetrics"],
        "reconstruction": ["ReconstructionPSNR", "psnr"],
        "similarity": ["CLIPSimilarity", "DINOSimilarity", "StructureDistance"],
    },
)
