"""Counts as people write them: what each spelling is, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow import apply

POWERS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20}


@given(st.integers(1, 10**5), st.sampled_from(list(POWERS)), st.sampled_from(["", " "]))
def test_a_count_is_its_digits_times_its_power(digits: int, power: str, gap: str) -> None:
    count = digits * POWERS[power]
    for word in (f"{digits}{power}", f"{digits}{gap}{power}", f"{digits:,}{power}".lower()):
        assert apply.parse_count("n", word) == count
        assert apply.parse_count("n", f"{word} sequences", sequence_length=7) == count
        assert apply.parse_count("n", f"{word}samples", sequence_length=7) == count
    assert apply.parse_count("n", f"{digits}e3") == 1_000 * digits
    assert apply.parse_count("n", f"{digits / 4}Ki") == digits * 256


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_tokens_are_whole_sequences_or_refused(sequences: int, length: int) -> None:
    tokens = sequences * length
    for word in (f"{tokens}", f"{tokens} tokens", f"{tokens}tok"):
        assert apply.parse_count("n", word, sequence_length=length) == sequences
    apart = tokens + length // 2
    if length // 2 > 0.011 * apart:
        with pytest.raises(ValueError, match="must be whole ones"):
            apply.parse_count("n", f"{apart}", sequence_length=length)
    with pytest.raises(ValueError, match="n counts tokens"):
        apply.parse_count("n", f"{tokens}tok")


@pytest.mark.parametrize(
    "word", ["", "many", "1.5", "0", "-4", "nan", "inf", "1e400", "1/2", "2**10", "5 apples", "1kk"]
)
def test_what_is_no_count_names_the_argument(word: str) -> None:
    with pytest.raises(ValueError, match=r"^n must be"):
        apply.parse_count("n", word)


def test_a_sequence_has_tokens() -> None:
    with pytest.raises(ValueError, match="sequence_length must be at least 1, got 0"):
        apply.parse_count("n", "64", sequence_length=0)
