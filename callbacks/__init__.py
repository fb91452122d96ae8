"""Observers of inversions and edits: what they measure is committed with each sample and folded when a run ends."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "attention_maps": ["AttentionMaps"],
        "images": ["Images"],
        "mask_overlap": ["MaskOverlap"],
        "metrics": ["Metrics"],
        "noise_correlation": ["NoiseCorrelation"],
        "noise_statistics": ["NoiseStatistics"],
        "noise_structure": ["NoiseStructure"],
        "progress": ["Progress"],
        "source_drift": ["SourceDrift"],
        "throughput": ["Throughput"],
        "trajectory": ["Trajectory"],
    },
)
