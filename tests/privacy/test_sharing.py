"""Shares of noise add up to at least the noise that was priced, and never to needlessly more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.privacy.sharing import ALONE, NoiseShare


@given(st.integers(1, 2**70), st.integers(2, 128), st.data())
def test_the_shares_of_any_t_less_any_c_make_the_full_noise(sigma: int, t: int, data: st.DataObject) -> None:
    share = NoiseShare(t, data.draw(st.integers(1, t - 1)))
    own = share.sigma_of(sigma)
    assert own * own * share.shares >= sigma * sigma
    assert (own - 1) ** 2 * share.shares < sigma * sigma


def test_alone_an_institution_adds_everything() -> None:
    assert not ALONE.is_shared
    assert ALONE.sigma_of(2**20 + 7) == 2**20 + 7


@pytest.mark.parametrize(("contributions", "colluders"), [(0, 0), (2, 0), (2, 2), (3, 5), (1, 1)])
def test_impossible_shares_are_refused(contributions: int, colluders: int) -> None:
    with pytest.raises(ValueError, match="colluders"):
        NoiseShare(contributions, colluders)
