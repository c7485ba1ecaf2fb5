"""Any T shares recover the secret, fewer say nothing, and the arithmetic is that of an independent interpolation."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.privacy.secure_sum import shamir
from cohortium.privacy.secure_sum.shamir import PRIME, SHARE_BYTES, Combiner, split
from cohortium.study.errors import RefusedError

secrets = st.binary(min_size=32, max_size=32)
elements = st.integers(0, PRIME - 1)


def lagrange_over_the_rationals(points: list[int], values: list[int], at: int) -> int:
    """The value at `at` of the polynomial through the points, by fractions that are reduced modulo PRIME at the end."""
    total = Fraction(0)
    for point, value in zip(points, values, strict=True):
        weight = Fraction(1)
        for other in points:
            if other != point:
                weight *= Fraction(at - other, point - other)
        total += weight * value
    return total.numerator * pow(total.denominator, -1, PRIME) % PRIME


def polynomial_by_elimination(points: list[int], values: list[int]) -> list[int]:
    """The coefficients of the polynomial through the points: Vandermonde's equations, solved by Gauss and Jordan."""
    size = len(points)
    table = [
        [pow(point, power, PRIME) for power in range(size)] + [value]
        for point, value in zip(points, values, strict=True)
    ]
    for column in range(size):
        pivot = next(row for row in range(column, size) if table[row][column])
        table[column], table[pivot] = table[pivot], table[column]
        scale = pow(table[column][column], -1, PRIME)
        table[column] = [entry * scale % PRIME for entry in table[column]]
        for row in range(size):
            if row != column:
                times = table[row][column]
                table[row] = [(a - times * b) % PRIME for a, b in zip(table[row], table[column], strict=True)]
    return [row[size] for row in table]


def test_the_modulus_is_prime_and_the_least_above_every_32_bytes() -> None:
    def probably_prime(number: int) -> bool:
        """Miller and Rabin, bases 2 to 37."""
        odd, twos = number - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
            power = pow(base, odd, number)
            if power in (1, number - 1):
                continue
            if not any((power := power * power % number) == number - 1 for _ in range(twos - 1)):
                return False
        return True

    assert [number for number in range(2**256, PRIME + 1) if probably_prime(number)] == [PRIME]
    assert (PRIME - 1).bit_length() <= 8 * SHARE_BYTES


@given(secret=secrets, count=st.integers(1, 12), data=st.data())
def test_any_t_shares_recover_the_secret(secret: bytes, count: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, count))
    shares = split(secret, threshold, count)
    assert len(shares) == count
    assert all(0 <= share < PRIME for share in shares)
    points = data.draw(st.permutations(range(1, count + 1)))[:threshold]
    assert Combiner(points).secret({point: shares[point - 1] for point in points}) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\1"], ids=["zero", "greatest", "one"])
def test_every_set_of_t_shares_recovers_the_secrets_at_the_borders(secret: bytes) -> None:
    shares = split(secret, 3, 6)
    for points in combinations(range(1, 7), 3):
        assert Combiner(points).secret({point: shares[point - 1] for point in points}) == secret


@given(one=secrets, other=secrets, count=st.integers(2, 8), data=st.data())
def test_fewer_than_t_shares_are_consistent_with_every_secret(
    one: bytes, other: bytes, count: int, data: st.DataObject
) -> None:
    """Whatever T - 1 shares of a secret are, for any other secret one polynomial gives the same shares."""
    threshold = data.draw(st.integers(2, count))
    known = data.draw(st.permutations(range(1, count + 1)))[: threshold - 1]
    shares = split(one, threshold, count)
    points, values = [0, *known], [int.from_bytes(other, "big"), *(shares[point - 1] for point in known)]
    polynomial = polynomial_by_elimination(points, values)
    drawn = list(reversed(polynomial[1:]))
    with patch.object(shamir, "fresh_below", side_effect=drawn):
        again = split(other, threshold, count)
    assert [again[point - 1] for point in known] == [shares[point - 1] for point in known]


def test_t_minus_1_shares_depend_on_randomness_alone() -> None:
    """Over a field small enough to count: all polynomials give every pair of shares equally often, for each secret."""
    with patch.object(shamir, "PRIME", 5):
        for secret in range(5):
            pairs = []
            for first in range(5):
                for second in range(5):
                    with patch.object(shamir, "fresh_below", side_effect=[first, second]):
                        shares = split(secret.to_bytes(32, "big"), 3, 4)
                    pairs.append((shares[1], shares[3]))
            assert sorted(pairs) == [(a, b) for a in range(5) for b in range(5)]


@given(values=st.lists(elements, min_size=1, max_size=7), data=st.data())
def test_interpolation_agrees_with_two_independent_ones(values: list[int], data: st.DataObject) -> None:
    points = data.draw(st.lists(st.integers(1, 128), min_size=len(values), max_size=len(values), unique=True))
    expected = lagrange_over_the_rationals(points, values, 0)
    assert polynomial_by_elimination(points, values)[0] == expected
    combiner, shares = Combiner(points), dict(zip(points, values, strict=True))
    if expected < 2**256:
        assert combiner.secret(shares) == expected.to_bytes(32, "big")
    else:
        with pytest.raises(RefusedError, match="belong to no secret"):
            combiner.secret(shares)


@given(secret=secrets, coefficients=st.lists(elements, max_size=6))
def test_shares_are_the_values_of_the_polynomial(secret: bytes, coefficients: list[int]) -> None:
    with patch.object(shamir, "fresh_below", side_effect=coefficients):
        shares = split(secret, len(coefficients) + 1, 128)
    powers = [int.from_bytes(secret, "big"), *reversed(coefficients)]
    for point in (1, 2, 127, 128):
        value = sum(coefficient * pow(point, power, PRIME) for power, coefficient in enumerate(powers)) % PRIME
        assert shares[point - 1] == value


def test_values_above_32_bytes_belong_to_no_secret() -> None:
    combiner = Combiner([1])
    assert combiner.secret({1: 2**256 - 1}) == b"\xff" * 32
    for value in (2**256, PRIME - 1):
        with pytest.raises(RefusedError, match="belong to no secret"):
            combiner.secret({1: value})


def test_coefficients_are_fresh_for_every_split() -> None:
    assert len({tuple(split(bytes(32), 2, 3)) for _ in range(50)}) == 50
