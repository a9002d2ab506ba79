"""Whether a number is what it seems to be: check digits and dates of card and identity numbers.

Each function takes the characters without separators, of the length and kinds that such a number has.
"""

from __future__ import annotations

import re
from datetime import date


def is_luhn(digits: str) -> bool:
    """A number of a card: every second digit doubled, ISO/IEC 7812-1, annex B."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(doubled)) % 10 == 0


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


_PROVINCE_OF_CHINA = re.compile("1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3]")


def is_chinese_identity(number: str) -> bool:
    """GB 11643: area, date of birth, and a check character by ISO 7064 MOD 11-2."""
    if not _PROVINCE_OF_CHINA.match(number) or not _is_date(int(number[6:10]), int(number[10:12]), int(number[12:14])):
        return False
    total = 0
    for digit in number[:17]:
        total = (total + int(digit)) * 2 % 11
    return number[17] == "10X98765432"[total]


def is_social_security(number: str) -> bool:
    """The Social Security Administration gives out no number with an area 000, 666 or 9xx, group 00 or serial 0000."""
    return number[:3] not in ("000", "666") and number[0] != "9" and number[3:5] != "00" and number[5:] != "0000"


def is_spanish_identity(number: str) -> bool:
    """DNI, and NIE whose first letter stands for a digit."""
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return number[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23]


def is_french_social_security(number: str) -> bool:
    """Sex, year, month, place and order of birth, and a key; Corsica's 2A and 2B count as 19 and 18."""
    digits = number[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(digits) % 97 == int(number[13:])


_ODD_PLACES_OF_ITALY = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def is_italian_tax_code(number: str) -> bool:
    """Decree of 23 December 1976: letters at odd places count by a table, at even places by their order."""
    values = [int(character) if character.isdigit() else ord(character) - ord("A") for character in number[:15]]
    total = sum(_ODD_PLACES_OF_ITALY[value] for value in values[::2]) + sum(values[1::2])
    return ord(number[15]) - ord("A") == total % 26


def is_brazilian_cpf(number: str) -> bool:
    """Two check digits modulo 11; eleven times the same digit is a filler."""
    for length in (9, 10):
        total = sum(int(digit) * weight for digit, weight in zip(number, range(length + 1, 1, -1), strict=False))
        if int(number[length]) != total * 10 % 11 % 10:
            return False
    return len(set(number)) > 1


def is_korean_resident(number: str) -> bool:
    """Date of birth, a digit for century and sex, and a check digit modulo 11."""
    century = 1900 if number[6] in "1256" else 2000
    weighted = zip(number, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=False)
    check = (11 - sum(int(digit) * weight for digit, weight in weighted) % 11) % 10
    return _is_date(century + int(number[:2]), int(number[2:4]), int(number[4:6])) and int(number[12]) == check


def is_aadhaar(number: str) -> bool:
    """Verhoeff's check: products in the dihedral group of order 10, each digit permuted by its place."""
    check = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit)
        for _ in range(place % 8):
            value = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[value]
        turn = -value if check >= 5 else value
        check = (check + turn) % 5 + 5 * ((check >= 5) != (value >= 5))
    return check == 0
