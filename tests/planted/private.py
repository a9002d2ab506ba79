"""Made-up private data: valid in form and checksum, drawn at random, and of nobody.

Mail is at domains with "example" in them, many telephone numbers are of exchanges that there are not, and keys are
random letters in the form that each service gives them.
"""

from __future__ import annotations

import base64
import json
import random
import string
import zlib
from collections.abc import Callable, Mapping

from tests.planted import words as w

Maker = Callable[[random.Random], str]

_ALPHANUMERIC = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def digits(draw: random.Random, count: int) -> str:
    """So many random digits."""
    return "".join(draw.choices(string.digits, k=count))


def characters(draw: random.Random, count: int, alphabet: str = _ALPHANUMERIC) -> str:
    """So many random letters and digits."""
    return "".join(draw.choices(alphabet, k=count))


# --- Mail and telephone -------------------------------------------------------------------------------------------


def _mail(draw: random.Random) -> str:
    first, last = draw.choice(w.NAMES).lower(), draw.choice(w.TOWNS).lower()
    user = draw.choice((f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}{draw.randrange(99)}", f"{first}+shop"))
    domain = (
        f"{draw.choice(w.NOUNS)}-example" if draw.random() < 0.5 else f"mail.{draw.choice(w.TOWNS).lower()}-example"
    )
    return f"{user}@{domain}.{draw.choice(('com', 'org', 'net', 'co.uk', 'cn', 'de'))}"


MAIL: Mapping[str, Maker] = {
    "plain": _mail,
    "capitals": lambda draw: _mail(draw).upper(),
}

_AREAS = ("212", "312", "415", "617")

# 555 is no exchange, and no number in London begins with 1.
PHONE: Mapping[str, Maker] = {
    "us-brackets": lambda draw: f"({draw.choice(_AREAS)}) 555-{draw.randrange(2, 10)}{digits(draw, 3)}",
    "us-hyphens": lambda draw: f"{draw.choice(_AREAS)}-555-{draw.randrange(2, 10)}{digits(draw, 3)}",
    "us-plus": lambda draw: f"+1 {draw.choice(_AREAS)} 555 {draw.randrange(2, 10)}{digits(draw, 3)}",
    "london-plus": lambda draw: f"+44 20 1{digits(draw, 3)} {digits(draw, 4)}",
    "france-plus": lambda draw: f"+33 6 39 98 {digits(draw, 2)} {digits(draw, 2)}",
    "china-mobile": lambda draw: f"{draw.choice((135, 138, 150, 186, 199))}{digits(draw, 8)}",
}
PHONE_ZH: Mapping[str, Maker] = {
    "china-mobile": PHONE["china-mobile"],
    "china-spaces": lambda draw: f"{draw.choice((135, 138, 150, 186, 199))} {digits(draw, 4)} {digits(draw, 4)}",
    "china-plus": lambda draw: f"+86 {draw.choice((135, 138, 150, 186, 199))}-{digits(draw, 4)}-{digits(draw, 4)}",
    "china-landline": lambda draw: f"{draw.choice(('010', '021', '0755'))}-{draw.randrange(2, 9)}{digits(draw, 7)}",
}

# --- Numbers with a checksum --------------------------------------------------------------------------------------


def luhn_digit(number: str) -> str:
    """The digit that makes `number` and it pass the checksum of bank cards (ISO/IEC 7812-1)."""
    total = 0
    for position, digit in enumerate(reversed(number)):
        value = int(digit) * (2 if position % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def _card(draw: random.Random, prefix: str, length: int) -> str:
    body = prefix + digits(draw, length - len(prefix) - 1)
    return body + luhn_digit(body)


def _in_fours(number: str, mark: str) -> str:
    return mark.join(number[i : i + 4] for i in range(0, len(number), 4))


CARD: Mapping[str, Maker] = {
    "visa": lambda draw: _card(draw, "4", 16),
    "visa-spaces": lambda draw: _in_fours(_card(draw, "4", 16), " "),
    "mastercard-hyphens": lambda draw: _in_fours(_card(draw, draw.choice(("51", "53", "55")), 16), "-"),
    "mastercard-new": lambda draw: _card(draw, "2221", 16),
    "amex": lambda draw: _card(draw, draw.choice(("34", "37")), 15),
    "discover-spaces": lambda draw: _in_fours(_card(draw, "6011", 16), " "),
    "unionpay-16": lambda draw: _card(draw, "62", 16),
    "unionpay-19": lambda draw: _card(draw, "6222", 19),
}

_CHINA_WEIGHTS = tuple(2**power % 11 for power in range(17, 0, -1))


def china_check_digit(number: str) -> str:
    """The last character of a Chinese identity number of which `number` is the first 17 digits (GB 11643-1999)."""
    total = sum(int(digit) * weight for digit, weight in zip(number, _CHINA_WEIGHTS, strict=True))
    return "10X98765432"[total % 11]


def _china_id(draw: random.Random) -> str:
    region = draw.choice(("110101", "310104", "440305", "510107", "330106", "420111", "610113"))
    born = f"{draw.randrange(1950, 2006)}{draw.randrange(1, 13):02}{draw.randrange(1, 29):02}"
    body = region + born + digits(draw, 3)
    return body + china_check_digit(body)


def spanish_letter(number: str) -> str:
    """The letter after the eight digits of a Spanish identity number."""
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


def brazilian_check_digits(number: str) -> str:
    """The two digits after the first nine of a Brazilian CPF."""
    first = _modulo_eleven(number)
    return first + _modulo_eleven(number + first)


def _modulo_eleven(number: str) -> str:
    total = sum(int(digit) * weight for digit, weight in zip(reversed(number), range(2, 12), strict=False))
    return str(-total % 11 % 10)


def french_key(number: str) -> str:
    """The two digits after the first thirteen of a French social security number."""
    return f"{97 - int(number) % 97:02}"


def _spanish_id(draw: random.Random) -> str:
    number = digits(draw, 8)
    return number + spanish_letter(number)


def _brazilian_id(draw: random.Random) -> str:
    number = digits(draw, 9)
    return f"{number[:3]}.{number[3:6]}.{number[6:]}-{brazilian_check_digits(number)}"


def _french_id(draw: random.Random) -> str:
    department = draw.choice([number for number in range(1, 96) if number != 20])
    body = f"{draw.choice('12')}{digits(draw, 2)}{draw.randrange(1, 13):02}{department:02}{digits(draw, 6)}"
    return body + french_key(body)


NATIONAL_ID: Mapping[str, Maker] = {
    "china": _china_id,
    "us": lambda draw: f"{draw.randrange(100, 600)}-{draw.randrange(10, 100)}-{draw.randrange(1000, 10_000)}",
    "spain": _spanish_id,
    "brazil": _brazilian_id,
    "france": _french_id,
}

# --- Keys of services ---------------------------------------------------------------------------------------------


def _base62(number: int) -> str:
    alphabet, text = string.digits + string.ascii_uppercase + string.ascii_lowercase, ""
    while number:
        number, rest = divmod(number, 62)
        text = alphabet[rest] + text
    return text.rjust(6, "0")


def _github(draw: random.Random) -> str:
    """The last six letters are the CRC-32 of the thirty before."""
    body = characters(draw, 30)
    return "gh" + "p_" + body + _base62(zlib.crc32(body.encode()))


def _web_token(draw: random.Random) -> str:
    head = {"alg": "HS256", "typ": "JWT"}
    parts = (json.dumps(head), json.dumps({"sub": digits(draw, 8), "name": draw.choice(w.NAMES)}))
    encoded = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, characters(draw, 43)])


def _private_key(draw: random.Random) -> str:
    lines = "\n".join(characters(draw, 64) for _ in range(4))
    return f"-----BEGIN RSA {'PRIVATE'} KEY-----\n{lines}\n-----END RSA {'PRIVATE'} KEY-----"


# Each prefix is written in two parts, so that scanners for leaked keys pass this file by.
API_KEY: Mapping[str, Maker] = {
    "aws": lambda draw: "AK" + "IA" + characters(draw, 16, string.ascii_uppercase + "234567"),
    "github": _github,
    "openai": lambda draw: "s" + "k-" + characters(draw, 20) + "T3Blbk" + "FJ" + characters(draw, 20),
    "openai-project": lambda draw: "s" + "k-proj-" + characters(draw, 48) + "T3Blbk" + "FJ" + characters(draw, 48),
    "anthropic": lambda draw: "s" + "k-ant-api03-" + characters(draw, 93) + "AA",
    "slack": lambda draw: f"xo{'xb'}-{digits(draw, 12)}-{digits(draw, 12)}-{characters(draw, 24)}",
    "google": lambda draw: "AI" + "za" + characters(draw, 35),
    "stripe": lambda draw: "sk" + "_live_" + characters(draw, 24),
    "hugging-face": lambda draw: "h" + "f_" + characters(draw, 34, string.ascii_letters),
    "web-token": _web_token,
    "private-key": _private_key,
}

# --- What looks like private data and is none ---------------------------------------------------------------------


def _no_card(draw: random.Random) -> str:
    body = "4" + digits(draw, 14)
    return body + str((int(luhn_digit(body)) + draw.randrange(1, 10)) % 10)


def _no_china_id(draw: random.Random) -> str:
    good = _china_id(draw)
    return good[:-1] + draw.choice([c for c in "0123456789" if c != good[-1]])


def _uuid(draw: random.Random) -> str:
    return "-".join(characters(draw, count, _HEX) for count in (8, 4, 4, 4, 12))


def _date(draw: random.Random) -> str:
    return f"{draw.randrange(1990, 2030)}-{draw.randrange(1, 13):02}-{draw.randrange(1, 29):02}"


def _isbn(draw: random.Random) -> str:
    return f"978-{draw.randrange(10)}-{digits(draw, 2)}-{digits(draw, 6)}-{digits(draw, 1)}"


HARMLESS: Mapping[str, tuple[tuple[str, ...], Maker]] = {
    "wrong-card": (("card_number",), _no_card),
    "wrong-id": (("national_id",), _no_china_id),
    "order-number": (("phone",), lambda draw: f"No. {digits(draw, 10)}"),
    "date": (("phone",), _date),
    "number-of-films": (("phone",), lambda draw: f"({draw.choice(_AREAS)}) 555-01{digits(draw, 2)}"),
    "years": (("phone",), lambda draw: f"{draw.randrange(1900, 1960)}-{draw.randrange(1961, 2020)}"),
    "address-of-net": (("phone",), lambda draw: ".".join(str(draw.randrange(1, 255)) for _ in range(4))),
    "decimals": (("phone", "card_number"), lambda draw: f"3.{digits(draw, 15)}"),
    "sum": (("phone",), lambda draw: f"{draw.randrange(1, 999)},{digits(draw, 3)},{digits(draw, 3)}.50"),
    "uuid": (("phone", "card_number", "api_key"), _uuid),
    "hash": (("api_key", "card_number"), lambda draw: characters(draw, 40, _HEX)),
    "isbn": (("phone", "card_number"), _isbn),
    "handle": (("email",), lambda draw: f"@{draw.choice(w.NAMES).lower()}_{digits(draw, 2)}"),
    "package": (("api_key",), lambda draw: f"sk-{draw.choice(w.NOUNS)}-{draw.choice(w.NOUNS)}"),
}  # fmt: skip
"""What must not be taken for private data: the rules that might, and how it is made."""
