from __future__ import annotations

import pytest
import torch
from torch import Tensor

from framework.statistics.steps import measure_steps


@pytest.mark.parametrize("values", [1, 5, 12, 1000])
def test_maps_are_measured_with_their_group_however_many_fit_in_a_call(values: int) -> None:
    maps = torch.arange(4 * 3 * 5, dtype=torch.float64).view(4, 3, 5)
    sizes = []

    def measure(part: Tensor, group: Tensor) -> dict[str, Tensor]:
        sizes.append(len(part))
        return {"sum": part.sum(1), "group": group}

    found = measure_steps(maps, measure, values_per_call=values)

    assert torch.equal(found["sum"], maps.sum(2))
    assert found["group"].tolist() == [[0, 1, 2]] * 4
    assert max(sizes) == min(max(1, values // 5), 12)
