"""Statistics of noise maps and trajectories: small states that merge exactly, what follows from them, and their plots.

A state holds sums about groups of values (one group per step, or per image and step). States of different images are
folded in the sorted order of their ids, so that one process, several processes and a resumed run give the same bits.
"""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "comoments": ["Centred", "CoMoments"],
        "fold": ["fold", "fold_draws", "to_float64"],
        "histogram": ["ANGLE_EDGES", "CORRELATION_EDGES", "NOISE_EDGES", "Histogram"],
        "moments": ["Moments"],
    },
)
