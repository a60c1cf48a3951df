"""Mobile tokens: nothing is lost, and a token holds the entries it should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.tokens import tokenise, untokenise

sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=50, deadline=None)
@given(count=sizes, unit=sizes, lead=st.lists(st.integers(1, 3), max_size=2))
def test_untokenise_undoes_tokenise(count: tuple[int, int, int], unit: tuple[int, int, int], lead: list[int]) -> None:
    x = torch.randn(*lead, *(n * u for n, u in zip(count, unit, strict=True)))
    tokens = tokenise(x, unit)
    assert tuple(tokens.shape) == (*lead, *count, *unit)
    assert torch.equal(untokenise(tokens, unit), x)


def test_a_token_is_a_block_of_the_series() -> None:
    x = torch.arange(8 * 4 * 6).reshape(8, 4, 6)
    assert torch.equal(tokenise(x, (4, 2, 3))[1, 0, 1], x[4:8, 0:2, 3:6])


def test_a_broken_token_is_refused() -> None:
    with pytest.raises(ValueError, match="t: length 7"):
        tokenise(torch.zeros(7, 4, 4), (4, 4, 4))
    with pytest.raises(ValueError, match="expected \\(4, 4, 4\\)"):
        untokenise(torch.zeros(1, 1, 1, 4, 2, 4), (4, 4, 4))
