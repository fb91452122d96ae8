"""What holds for every test: no network, one thread, no absent device, and a warning from our code is an error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

# Before torch is imported, and in the environment so that processes that a test starts inherit it.
THREADS = os.environ.setdefault("INVEDIT_TEST_THREADS", "1")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = THREADS
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402
import torch  # noqa: E402

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
