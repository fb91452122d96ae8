"""Networks and their codecs: Stable Diffusion, pixel-space UNets, closed-form mixtures."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "base": ["Backbone", "ControlHandle"],
        "stable_diffusion": ["StableDiffusion"],
        "pixel": ["PixelDiffusion"],
        "mixture": ["GaussianMixture"],
    },
)
