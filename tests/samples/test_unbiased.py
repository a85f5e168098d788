"""Ten thousand plans from the same scores: biased rules are found out by the test that unbiased ones pass.

That unbiased rules pass is in ``test_rules.py``, by the public suite.
"""

import dataclasses

import pytest
from tests.reference.rules import BIASED, RULES

from scrimp.testing.rule import check_unbiased, example_view, plan_statistics


@pytest.mark.parametrize("name", BIASED)
def test_biased_by_the_same_monte_carlo(name):
    rule = RULES[name]
    if name == "static random":  # unbiased over runs; within one it always leaves out the same samples
        view = example_view(rule, 9)
        plans = [rule.select(dataclasses.replace(view, epoch=epoch)).indices for epoch in range(9, 40)]
        parts = {tuple(sorted(plan.tolist())) for plan in plans}
        assert len(parts) == 1
        assert len(next(iter(parts))) == view.num_samples // 2
        return
    assert float(plan_statistics(rule).gradient_deviations.max()) > 20
    with pytest.raises(AssertionError, match="says that it is unbiased"):
        check_unbiased(rule, num_plans=2000)
