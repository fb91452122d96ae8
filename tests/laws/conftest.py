"""Laws hold for every method."""

from __future__ import annotations

import pytest

from framework.module import EditModule
from tests.few_steps import method_classes


@pytest.fixture(params=method_classes(), ids=lambda method: method.__name__)
def method(request: pytest.FixtureRequest) -> type[EditModule]:
    return request.param  # type: ignore[no-any-return]
