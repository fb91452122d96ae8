"""The engine: schedules, inversions, guidance, controls, backbones, and the module that runs them."""

from framework.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "callback": ["EditCallback", "Measurement"],
        "context": ["Context", "Texts"],
        "control": ["Control"],
        "errors": ["Checks", "SampleError", "SettingsError"],
        "guidance": ["ClassifierFree", "Guidance"],
        "inversion": ["Inversion"],
        "module": ["EditModule"],
        "record": ["Record"],
        "reference": ["Reference"],
        "result": ["EditResult"],
        "schedule": ["Level", "Schedule", "ScheduleOptions"],
        "step": ["Condition", "Latents", "Need", "Row", "Rows", "Site", "Step", "Stream"],
    },
)
