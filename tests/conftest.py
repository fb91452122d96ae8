"""What holds for every test: no network, one thread, no absent device, and a warning from our code is an error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

# Before torch is imported, and in the environment so that processes that a test starts inherit it.
THREADS = os.environ.setdefault("INVEDIT_TEST_THREADS", "1")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = THREADS
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402
import torch  # noqa: E402

if TYPE_CHECKING:
    from framework.backbones import SD3, StableDiffusion
    from framework.module import EditModule

torch.set_num_threads(int(THREADS))

OURS = r"(framework|methods|callbacks|experiments)(\.|$)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def warnings_from_our_modules_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=OURS)
        yield


@pytest.fixture(scope="session")
def network() -> StableDiffusion:
    """The tiny random Stable Diffusion, in float64."""
    from framework.backbones import StableDiffusion
    from tests.small import MODELS

    backbone = StableDiffusion(str(MODELS / "tiny-sd"), dtype="float64")
    backbone.load()
    return backbone


@pytest.fixture(scope="session")
def flow_network() -> SD3:
    """The tiny random Stable Diffusion 3, in float64 and with few text positions."""
    from framework.backbones import SD3
    from tests.small import MODELS

    backbone = SD3(str(MODELS / "tiny-sd3"), dtype="float64", max_sequence_length=4)
    backbone.load()
    return backbone


@pytest.fixture
def make(network: StableDiffusion, flow_network: SD3) -> Callable[..., EditModule]:
    """Build a method with few steps on the tiny diffusion model, or on the tiny flow model if it is one for flows."""
    from tests.few_steps import FEW_STEPS

    def build(method: type[EditModule], **settings: Any) -> EditModule:
        settings = {**FEW_STEPS[method.__name__], **settings}
        if "backbone" in settings:
            return method(**settings)
        module = method(network, **settings)
        return module if network.form in module.inversion.forms else method(flow_network, **settings)

    return build
