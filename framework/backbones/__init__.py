"""Networks and their codecs: Stable Diffusion 1 to 3, FLUX, pixel-space UNets, closed-form mixtures."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "base": ["Backbone", "ControlHandle"],
        "stable_diffusion": ["StableDiffusion"],
        "sd3": ["SD3"],
        "flux": ["Flux"],
        "pixel": ["PixelDiffusion"],
        "mixture": ["GaussianMixture"],
    },
)
