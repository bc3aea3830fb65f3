"""What every report asks of a cell's scores."""

from __future__ import annotations

import math

import pytest

from freezeasguard.reports.measures import fall_of_quality


def test_quality_falls_by_a_share_of_what_it_was() -> None:
    assert fall_of_quality("recogniser", 0.4, 0.5) == pytest.approx(25)  # a distance: more is worse
    assert fall_of_quality("clip_tiny", 40, 30) == pytest.approx(25)


@pytest.mark.parametrize("before", [0.0, -2.0])
def test_of_what_is_not_above_zero_there_is_no_share(before: float) -> None:
    assert math.isnan(fall_of_quality("clip_tiny", before, 30.0))
