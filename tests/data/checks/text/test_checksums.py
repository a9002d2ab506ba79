"""Check digits agree with published numbers, and with a second way to compute them."""

import string
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.text.checksums import (
    is_aadhaar,
    is_brazilian_cpf,
    is_chinese_identity,
    is_french_social_security,
    is_italian_tax_code,
    is_korean_resident,
    is_luhn,
    is_social_security,
    is_spanish_identity,
)


def digits(count: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=count, max_size=count)


DATES = st.integers(0, 30000).map(lambda days: date(1930, 1, 1) + timedelta(days))


def test_published_examples() -> None:
    assert is_luhn("79927398713")
    assert is_chinese_identity("11010519491231002X")
    assert is_spanish_identity("12345678Z")
    assert is_spanish_identity("X1234567L")
    assert is_french_social_security("255081416802538")
    assert is_italian_tax_code("RSSMRA85T10A562S")
    assert is_brazilian_cpf("52998224725")
    assert is_aadhaar("234123412346")


@given(digits(15))
def test_luhn_is_the_sum_that_a_loop_from_the_right_gives(payload: str) -> None:
    total = 0
    for place, digit in enumerate(reversed(payload)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    right = str((10 - total % 10) % 10)
    assert [check for check in string.digits if is_luhn(payload + check)] == [right]


@given(st.sampled_from(["110101", "310115", "650102"]), DATES, digits(3))
def test_the_chinese_check_is_the_weighted_sum_of_the_standard(area: str, born: date, serial: str) -> None:
    number = area + born.strftime("%Y%m%d") + serial
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(number, weights, strict=True))
    right = next(check for check in "0123456789X" if (total + (10 if check == "X" else int(check))) % 11 == 1)
    assert [check for check in "0123456789X" if is_chinese_identity(number + check)] == [right]


def test_a_chinese_number_needs_an_area_and_a_date() -> None:
    for number in ("99010519491231", "11010519491331", "11010519490230"):
        assert not any(is_chinese_identity(f"{number}002{check}") for check in "0123456789X")


@pytest.mark.parametrize("number", ["000123456", "666123456", "900123456", "123003456", "123450000"])
def test_social_security_numbers_that_are_not_given_out(number: str) -> None:
    assert is_social_security("123456789")
    assert not is_social_security(number)


@given(digits(8))
def test_one_letter_of_23_is_right_in_spain(number: str) -> None:
    right = [letter for letter in string.ascii_uppercase if is_spanish_identity(number + letter)]
    assert len(right) == 1
    assert is_spanish_identity(str((int(number) + 23) % 10**8).zfill(8) + right[0]) == (int(number) + 23 < 10**8)


@given(digits(13).filter(lambda number: number[0] in "12"))
def test_the_french_number_and_its_key_are_a_multiple_of_97(number: str) -> None:
    right = next(key for key in range(1, 98) if (int(number) + key) % 97 == 0)
    assert [key for key in range(1, 98) if is_french_social_security(f"{number}{key:02}")] == [right]


@given(digits(9))
def test_cpf_is_brazils_rule_in_its_own_words(number: str) -> None:
    for _ in range(2):
        rest = sum(int(digit) * weight for weight, digit in enumerate(reversed(number), start=2)) % 11
        number += "0" if rest < 2 else str(11 - rest)
    assert is_brazilian_cpf(number) == (len(set(number)) > 1)
    assert not is_brazilian_cpf(number[:-1] + str((int(number[-1]) + 1) % 10))


@given(DATES, digits(5))
def test_korean_check(born: date, rest: str) -> None:
    number = born.strftime("%y%m%d") + ("1" if born.year < 2000 else "3") + rest
    total = sum(int(digit) * (2 + place % 8) for place, digit in enumerate(number))
    assert [check for check in string.digits if is_korean_resident(number + check)] == [str((11 - total % 11) % 10)]


@given(digits(11), st.integers(0, 10))
def test_verhoeff_finds_every_wrong_digit_and_every_swap(payload: str, place: int) -> None:
    number = payload + next(check for check in string.digits if is_aadhaar(payload + check))
    for digit in string.digits:
        assert is_aadhaar(number[:place] + digit + number[place + 1 :]) == (digit == number[place])
    swapped = number[:place] + number[place + 1] + number[place] + number[place + 2 :]
    assert is_aadhaar(swapped) == (swapped == number)


@given(st.text(string.ascii_uppercase, min_size=6, max_size=6), digits(2), digits(2), digits(3))
def test_one_letter_of_26_is_right_in_italy(names: str, year: str, day: str, place: str) -> None:
    body = f"{names}{year}A{day}F{place}"
    right = [letter for letter in string.ascii_uppercase if is_italian_tax_code(body + letter)]
    assert len(right) == 1
    # At even places the values follow the alphabet, so the next letter there moves the check by one.
    if names[1] != "Z":
        moved = body[0] + chr(ord(body[1]) + 1) + body[2:]
        assert is_italian_tax_code(moved + chr((ord(right[0]) - ord("A") + 1) % 26 + ord("A")))
