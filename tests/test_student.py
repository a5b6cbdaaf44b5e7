"""Student's t against scipy's."""

from __future__ import annotations

import pytest
from scipy import stats

from mint_deploy import _student as st
from mint_deploy.errors import ConfigError


@pytest.mark.parametrize("df", [1, 1.5, 2, 3, 4, 7.3, 9, 19, 30, 100, 2500])
@pytest.mark.parametrize("q", [0.001, 0.025, 0.4, 0.5, 0.6, 0.9, 0.95, 0.975, 0.995, 0.9999])
def test_students_t_is_scipys(df, q):
    assert st.t_quantile(q, df) == pytest.approx(stats.t.ppf(q, df), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("q", "df"), [(0, 4), (1, 4), (0.5, 0), (0.5, float("inf"))])
def test_students_t_refuses_what_makes_no_sense(q, df):
    with pytest.raises(ConfigError):
        st.t_quantile(q, df)


@pytest.mark.parametrize("df", [1, 4, 24.5])
def test_it_is_symmetric_and_grows(df):
    quantiles = [st.t_quantile(q, df) for q in (0.6, 0.8, 0.95, 0.999)]
    assert quantiles == sorted(quantiles)
    assert st.t_quantile(0.05, df) == pytest.approx(-st.t_quantile(0.95, df))
    assert st.t_quantile(0.5, df) == pytest.approx(0, abs=1e-12)
