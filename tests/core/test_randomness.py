"""Counter-based randomness: published test vectors, distribution, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raytraffic.randomness import derive, fold, fold_numpy, normal, philox, text_key, uniform

INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """The known-answer vectors of the Random123 distribution for philox4x32-10."""
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    words = philox((c0, c1, c2, c3), (torch.tensor([key[0]]), torch.tensor([key[1]])))
    assert tuple(int(word) for word in words) == expected


@given(st.lists(st.tuples(INT64, INT64), min_size=1, max_size=20))
def test_seed_mixing_agrees_in_python_numpy_and_torch(pairs: list[tuple[int, int]]) -> None:
    keys, values = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    by_numpy = fold_numpy(keys, values)
    assert torch.equal(derive(torch.from_numpy(keys), torch.from_numpy(values)), torch.from_numpy(by_numpy))
    assert fold(*pairs[0]) == by_numpy[0]


def test_normal_and_uniform_are_what_they_say() -> None:
    z = normal(torch.arange(200), 3, (500,))
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    u = uniform(torch.arange(200), 3, (500,))
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert float(u.min()) > 0 and float(u.max()) < 1
    assert abs(float(np.corrcoef(z[:100].flatten(), z[100:].flatten())[0, 1])) < 0.02
    assert abs(float(np.corrcoef(z.flatten(), normal(torch.arange(200), 4, (500,)).flatten())[0, 1])) < 0.02


def test_a_window_draws_the_same_alone_and_in_a_batch() -> None:
    seeds = torch.tensor([5, -7, 2**60])
    together = normal(seeds, 1, (3, 5))
    assert torch.equal(normal(seeds[1:2], 1, (3, 5)), together[1:2])
    assert torch.equal(normal(seeds, 1, (3, 4)).flatten(1), together.flatten(1)[:, :12])


def test_text_keys_are_stable() -> None:
    assert text_key("nanchang|train|p00") == text_key("nanchang|train|p00")
    assert len({text_key(f"site {i}") for i in range(1000)}) == 1000
