"""One file per paper: its equations, its defaults, its parts, and the EditModule that puts them together."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "blended_latents": ["BlendedLatents"],
        "concepts": ["Concept"],
        "cycle_diffusion": ["CycleDiffusion", "PosteriorInversion"],
        "ddim": ["DDIM", "DDIMInversion"],
        "diffedit": ["DiffEdit", "DiffEditGuidance"],
        "direct_inversion": ["DirectDDIM", "DirectInversion"],
        "edit_friendly": ["EditFriendlyDDPM", "EditFriendlyInversion"],
        "flowalign": ["AlignedDifference", "FlowAlign", "SourceAsUnconditional"],
        "flowedit": ["FlowEdit", "VelocityDifference"],
        "implicit_masks": ["ImplicitMaskGuidance", "MaskedConcept"],
        "infedit": ["InfEdit", "VirtualInversion"],
        "ledits": ["LEDITS", "FaceConcept", "LeditsConcept", "ObjectConcept", "StyleConcept"],
        "local_blend": ["LocalBlend"],
        "masactrl": ["MasaCtrl", "MutualSelfAttention"],
        "negative_prompt": ["NegativePrompt", "NegativePromptInversion"],
        "noise_manipulation": ["Colour", "Manipulated"],
        "noise_map_guidance": ["NMG", "NoiseMapGuidance"],
        "null_text": ["NullText", "NullTextInversion"],
        "pix2pix_zero": ["CrossAttentionGuidance", "Pix2PixZero"],
        "plug_and_play": ["FeatureInjection", "OnTrajectory", "PlugAndPlay"],
        "prompt_to_prompt": ["PromptToPrompt"],
        "proximal": ["ProxEdit", "ProximalGuidance"],
        "ledits_pp": ["LEDITSPP", "MultistepSDEInversion"],
        "regularised_inversion": ["RegularisedInversion"],
        "sdedit": ["NoInversion", "SDEdit"],
        "turbo_edit": ["ShiftedInversion", "TurboEdit"],
        "sega": ["SEGA", "PureNoise", "SemanticGuidance"],
        "unified_attention": ["UnifiedAttention"],
        "uniedit_flow": ["UniEditFlow", "UniInversion", "VelocityFusion"],
    },
)
