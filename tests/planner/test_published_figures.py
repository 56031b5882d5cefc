"""Predicted speeds and peaks beside those that others published: the table in the docs, and a reason for each outlier."""

import sys

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from accuracy.published import GOOD, PUBLISHED, Published, ratios, table


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: f"{one.what}, {one.machine}")
def test_a_published_figure_is_met_within_a_quarter_or_the_difference_has_a_reason(one: Published) -> None:
    outside = [ratio for ratio in ratios(one) if not GOOD[0] <= ratio <= GOOD[1]]
    assert bool(outside) == bool(one.why)


def test_the_table_in_the_docs_is_what_the_planner_says_now() -> None:
    assert table() in (ROOT / "docs" / "speed-model.md").read_text("utf-8")
