"""Rules about private data: mail addresses, telephone, card and identity numbers, and keys of services.

Where a kind has a checksum, it is computed; where it has none, the shape must be one that plain numbers seldom have.
What is reserved for documentation is nobody's and is not found: addresses at example.com and the other domains of
RFC 2606, the numbers 555-0100 to 555-0199 and Ofcom's for drama, keys that say EXAMPLE as those of the AWS manual do.
Excerpts are masked, because they go into reports.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.checks.rules import EXCERPT_CHARACTERS, TextRule, texts_of, with_texts
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
from tunesmith.data.records import Example


@dataclass(frozen=True, slots=True)
class _Secret:
    """One piece of private data, at [start, end) of a text. `shown` is its masked form."""

    start: int
    end: int
    shown: str


def _private_rule(
    name: str,
    what: str,
    mark: str,
    may_hold: Callable[[str], object],
    secrets_of: Callable[[str], Iterable[_Secret]],
) -> TextRule:
    """A rule that puts `mark` in the place of each secret.

    Args:
        may_hold: whether a text is worth a closer look; it is asked of every row, so it must be quick.
        secrets_of: the secrets of a text, in any order.
    """

    def find(example: Example) -> str | None:
        texts = texts_of(example)
        if not may_hold("\n".join(texts)):
            return None
        for text in texts:
            for secret in _apart(secrets_of(text)):
                return secret.shown[:EXCERPT_CHARACTERS]
        return None

    def without(text: str) -> str:
        # Again until nothing is found: what stood right beside a secret may have kept the next from being seen.
        while may_hold(text):
            pieces: list[str] = []
            end = 0
            for secret in _apart(secrets_of(text)):
                pieces += (text[end : secret.start], mark)
                end = secret.end
            if not pieces:
                break
            text = "".join(pieces) + text[end:]
        return text

    return TextRule(
        name,
        what,
        "ask whether they may be trained on, and take them out if not",
        find,
        lambda example: with_texts(example, without),
    )


def _apart(secrets: Iterable[_Secret]) -> Iterator[_Secret]:
    """In order of the text, and of those that overlap only the first, or the longest that begins there."""
    end = 0
    for secret in sorted(secrets, key=lambda secret: (secret.start, -secret.end)):
        if secret.start >= end:
            yield secret
            end = secret.end


def _shape_finder(kinds: Mapping[str, str], shapes: Sequence[str], *, dropped: str = "") -> Callable[[str], bool]:
    """Whether a text holds any of some shapes: runs of kinds of ASCII characters, told several times faster than by a
    regular expression.

    Args:
        kinds: the characters of each kind; those of none are of kind "x", and "?" stands for any beyond ASCII too.
        shapes: strings of kinds.
        dropped: characters that are passed over.
    """
    table = bytearray(b"x" * 256)
    for kind, characters in kinds.items():
        for character in characters:
            table[ord(character)] = ord(kind)
    unseen, wanted = dropped.encode(), tuple(shape.encode() for shape in shapes)

    def holds(text: str) -> bool:
        seen = text.encode("ascii", "replace").translate(table, unseen)
        for shape in wanted:  # noqa: SIM110 - any() over a generator doubles what this costs
            if shape in seen:
                return True
        return False

    return holds


_NUMBER_KINDS = {"0": string.digits, "-": " .-", "A": string.ascii_uppercase}


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


# What stands around a number of its own: it is no part of a word, of a longer number, of a price or a path.
_BEFORE = r"(?<![0-9A-Za-z_$€£¥￥])(?<![0-9A-Za-z_][-+])(?<![A-Za-z_]/)(?<![^A-Za-z]\.)"
_AFTER = r"(?![0-9A-Za-z_]|[.+-][0-9]|/[0-9]{1,6}(?![0-9])|,[0-9]{3}(?![0-9]))"
_NO_SUM = r"(?!\s*[=×÷^%]|\s?\*\s?[0-9A-Za-z(]|\s?[元円万亿])"
"""Follows a number that has no check digit: it is not calculated with, nor is it an amount."""

# ------------------------------------------------------------------------------------------------------ mail addresses

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_])(?P<person>[A-Za-z0-9_][A-Za-z0-9._%+'-]{0,63})"
    r"@(?P<domain>(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9_])"
)
_NO_DOMAIN = re.compile(
    r"(?:.*\.)?example\.(?:com|net|org)|.*\.(?:example|test|invalid|localhost)"
    # A version (package@1.2.0-beta.rc) or a file (icon@2x.png).
    r"|[0-9]+(?:\.[0-9]+)+.*|.*\.(?:png|jpe?g|gif|svg|webp|ico|css|js|json|html?|txt|pdf)",
    re.IGNORECASE,
)


def _emails(text: str) -> Iterator[_Secret]:
    for match in _EMAIL.finditer(text):
        person, domain = match["person"], match["domain"]
        # git@host is the account that everybody uses.
        if person != "git" and not _NO_DOMAIN.fullmatch(domain):
            yield _Secret(*match.span(), f"{person[0] if len(person) > 1 else ''}…@{domain}")


EMAIL = _private_rule("email", "hold mail addresses", "[EMAIL]", lambda text: "@" in text, _emails)
"""Mail addresses, but for those at domains that are reserved for documentation (RFC 2606)."""

# --------------------------------------------------------------------------------------------------- telephone numbers

_COUNTRY = (
    r"(?:7|2[07]|2[1-689][0-9]|3[0-469]|3[578][0-9]|4[013-9]|42[0-9]|5[1-8]|5[09][0-9]|6[0-6]|6[7-9][0-9]|8[1246]"
    r"|8[058][0-9]|9[0-58]|9[679][0-9])"
)
_AREA_OF_CHINA = r"0(?:10|2[0-9]|[3-9][0-9]{2})"
_PHONE = re.compile(
    r"(?<![0-9A-Za-z_)\].+])\+"
    r"(?:1[ .-]?\(?[2-9][0-9]{2}\)?[ .-]?[0-9]{3}[ .-]?[0-9]{4}"
    rf"|{_COUNTRY}(?:[ ./-]?(?:[0-9]|[(（][0-9]{{1,4}}[)）])){{5,13}}(?<![ .][0-9]))(?![0-9A-Za-z_]|\.[0-9]|\s*[=×÷^%])"
    rf"|{_BEFORE}(?:"
    r"(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ .-]?[0-9]{3}[ .-]"
    r"|[2-9][0-9]{2}(?: [0-9]{3}-|(?P<sign>[.-])[0-9]{3}(?P=sign)))[0-9]{4}"
    r"|(?:(?:00)?86[ -]?)?1[3-9][0-9](?P<gap>[ -]?)[0-9]{4}(?P=gap)[0-9]{4}(?!@)"
    rf"|(?:{_AREA_OF_CHINA}-|[(（]{_AREA_OF_CHINA}[)）][ -]?)[0-9]{{7,8}}"
    rf"){_AFTER}{_NO_SUM}"
)
_LONG_AFTER_PLUS = re.compile(r"\+[1-9](?:[ ./()（）-]{0,2}[0-9]){6}")
_holds_long_number = _shape_finder(
    _NUMBER_KINDS, ("0000000", "000-000-0000", "000000-0000", "000-0000-0000"), dropped="()"
)
_FICTIONAL = re.compile(r"1?[2-9][0-9]{2}55501[0-9]{2}|440?(?:2079460|1632960|7700900)[0-9]{3}")
_DECIMAL = re.compile(r"\+[0-9]+\.[0-9]+")


def _phones(text: str) -> Iterator[_Secret]:
    for match in _PHONE.finditer(text):
        digits = _digits(match[0])
        is_round = digits.endswith("00000")  # an amount, or made up
        if len(digits) <= 15 and not is_round and not _FICTIONAL.fullmatch(digits) and not _DECIMAL.fullmatch(match[0]):
            yield _Secret(*match.span(), f"telephone number …{digits[-2:]} ({len(digits)} digits)")


PHONE = _private_rule(
    "phone",
    "hold telephone numbers",
    "[PHONE]",
    lambda text: _holds_long_number(text) or _LONG_AFTER_PLUS.search(text),
    _phones,
)
"""Telephone numbers: international with +, of North America, and mobile and landline numbers of China.

Other national forms are left alone, because they look like any number. So is 123-456-7890: no area begins with 1.
"""

# -------------------------------------------------------------------------------------------------------- card numbers

_CARD = re.compile(
    rf"{_BEFORE}(?:[0-9]{{13,19}}"
    r"|(?<![0-9]{4}[ -])[0-9]{4}(?P<by_four>[ -])[0-9]{4}(?P=by_four)[0-9]{4}(?P=by_four)[0-9]{4}"
    r"(?:(?P=by_four)[0-9]{1,3}(?![0-9]))?(?!(?P=by_four)[0-9]{4})"
    r"|[0-9]{4}(?P<by_six>[ -])[0-9]{6}(?P=by_six)[0-9]{4,5}"
    rf"|[0-9]{{6}}[ -][0-9]{{10,13}}){_AFTER}"
)
_ISSUERS = tuple(
    (re.compile(prefix), lengths)
    for prefix, lengths in (
        ("4", (13, 16, 19)),  # Visa
        ("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),  # Mastercard
        ("3[47]", (15,)),  # American Express
        ("6011|64[4-9]|65|62|352[89]|35[3-8]", (16, 17, 18, 19)),  # Discover, UnionPay, JCB
        ("30[0-5]|3[689]", (14, 16, 19)),  # Diners Club
        ("5018|5020|5038|5893|6304|6759|676[1-3]", (13, 14, 15, 16, 17, 18, 19)),  # Maestro
        ("220[0-4]", (16, 17, 18, 19)),  # Mir
    )
)


def _cards(text: str) -> Iterator[_Secret]:
    for match in _CARD.finditer(text):
        digits = _digits(match[0])
        start, end = match.span()
        if match["by_four"] and not _is_card(digits) and len(digits) > 16:
            # A number of four digits less may follow the card: its check code, say.
            end -= len(digits) - 16 + 1
            digits = digits[:16]
        if _is_card(digits):
            yield _Secret(start, end, f"card number …{digits[-4:]} ({len(digits)} digits)")


def _is_card(digits: str) -> bool:
    known = any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in _ISSUERS)
    return known and is_luhn(digits) and not (len(digits) == 18 and is_chinese_identity(digits))


CARD_NUMBER = _private_rule(
    "card_number",
    "hold numbers of bank cards",
    "[CARD]",
    _shape_finder(_NUMBER_KINDS, ("0000000000000", "0000-0000-0000-0", "0000-000000-0", "000000-0000000000")),
    _cards,
)
"""Numbers of bank cards: 13 to 19 digits, together or in the groups printed on cards, of a known issuer and length, of
which the last is the right check digit."""

# --------------------------------------------------------------------------------------------------- identity numbers


@dataclass(frozen=True, slots=True)
class _Identity:
    """One country's number: its shape, its check, and a name that must stand before it where these do not suffice."""

    name: str
    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool] | None
    named: re.Pattern[str] | None = None


_IDENTITIES = tuple(
    _Identity(name, re.compile(f"{_BEFORE}{pattern}{_AFTER}"), is_valid, named)
    for name, pattern, is_valid, named in (
        (
            "Chinese identity number",
            r"[1-8][0-9]{5}(?P<gap>[ -]?)(?:19|20)[0-9]{2}[01][0-9][0-3][0-9](?P=gap)[0-9]{3}[0-9Xx]",
            is_chinese_identity,
            None,
        ),
        (
            "US Social Security number",
            r"[0-9]{3}(?:-[0-9]{2}-|(?<![0-9] [0-9]{3}) [0-9]{2} (?=[0-9]{4}(?! [0-9])))[0-9]{4}" + _NO_SUM,
            is_social_security,
            None,
        ),
        (
            "Spanish identity number",
            r"(?<!/)(?:[0-9]{8}|[XYZ]-?[0-9]{7})[ -]?[A-HJ-NP-TV-Z]",
            is_spanish_identity,
            None,
        ),
        (
            "French social security number",
            r"[12] ?[0-9]{2} ?(?:0[1-9]|1[0-2]) ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
            is_french_social_security,
            None,
        ),
        ("Italian tax code", r"[A-Z]{6}[0-9]{2}[A-EHLMPR-T][0-9]{2}[A-Z][0-9]{3}[A-Z]", is_italian_tax_code, None),
        ("Brazilian CPF", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", is_brazilian_cpf, None),
        ("Korean resident number", r"[0-9]{6}-[1-8][0-9]{6}", is_korean_resident, None),
        (
            "Indian Aadhaar number",
            r"[2-9][0-9]{3}(?P<gap>[ -]?)[0-9]{4}(?P=gap)[0-9]{4}",
            is_aadhaar,
            re.compile(r"(?i)aadh?aa?r|uidai|आधार"),
        ),
        (
            "British National Insurance number",
            r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][ -]?(?:[0-9]{2}[ -]?){3}[A-D]",
            None,
            re.compile(r"(?i)national insurance|(?<![a-z])(?:nino|ni (?:number|no))(?![a-z])"),
        ),
    )
)
_NEARBY_CHARACTERS = 60


def _identities(text: str) -> Iterator[_Secret]:
    for identity in _IDENTITIES:
        for match in identity.pattern.finditer(text):
            start, end = match.span()
            number = re.sub("[^0-9A-Z]", "", match[0].upper())
            if identity.named and not identity.named.search(text, max(0, start - _NEARBY_CHARACTERS), start):
                continue
            if identity.is_valid is None or identity.is_valid(number):
                yield _Secret(start, end, f"{identity.name} …{number[-2:]}")


NATIONAL_ID = _private_rule(
    "national_id",
    "hold national identity numbers",
    "[ID]",
    _shape_finder(
        _NUMBER_KINDS,
        (
            "0000000",
            "000000A",
            "00-00-00-A",
            "0-00-00-0",
            "00A00A000A",
            "000-00-0000",
            "0000-0000-0000",
            "000-000-000-00",
        ),
    ),
    _identities,
)
"""Identity numbers of China, the USA, Spain, France, Italy, Brazil and Korea; those of India and Britain, which any
number or code might be, only after their name."""

# ---------------------------------------------------------------------------------------------------- keys of services

_PRIVATE_KEY = "private key"
_PEM = (
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:[^-]|-(?!----)){40,}-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|(?:\s+[A-Za-z0-9+/=]{40,})+)"
)
_SERVICES = tuple(
    (name, tuple(signs.split()), re.compile(f"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])", re.ASCII))
    for name, signs, pattern in (
        ("AWS key", "AKIA ASIA", r"A[KS]IA[A-Z0-9]{16}"),
        ("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", r"(?:gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{60,})"),
        ("Anthropic key", "sk-ant-", r"sk-ant-[\w-]{20,}"),
        ("OpenAI key", "sk-", r"sk-(?!ant-)[\w-]{20,}"),
        ("Slack token", "xox", r"xox[abeoprs]-[A-Za-z0-9-]{15,}"),
        ("Google key", "AIza", r"AIza[\w-]{35}"),
        ("Stripe key", "k_live_", r"[rs]k_live_[A-Za-z0-9]{16,}"),
        ("Hugging Face token", "hf_", r"hf_[A-Za-z0-9]{30,40}"),
        ("GitLab token", "glpat-", r"glpat-[\w.-]{20,}"),
        ("npm token", "npm_", r"npm_[A-Za-z0-9]{36}"),
        ("PyPI token", "pypi-", r"pypi-[\w-]{50,}"),
        ("SendGrid key", "SG.", r"SG\.[\w-]{20,32}\.[\w-]{32,64}"),
        ("Twilio key", "AC SK", r"(?:AC|SK)[0-9a-f]{32}"),
        ("Alibaba Cloud key", "LTAI", r"LTAI[A-Za-z0-9]{16,20}"),
        ("Tencent Cloud key", "AKID", r"AKID[A-Za-z0-9]{32}"),
        ("JSON web token", "eyJ", r"eyJ[\w-]{17,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
        (_PRIVATE_KEY, "PRIVATE", _PEM),
    )
)
_ASSIGNED = re.compile(
    r"[:=：]>?[ \t]{0,2}(?:[Bb]earer )?[\"'`“]?"
    r"(?P<value>[A-Za-z0-9!@#%^&*~+/][A-Za-z0-9!@#$%^&*~+/_-]{11,}={0,2})(?![A-Za-z0-9!@#$%^&*~+/_(\[-]|\.[A-Za-z])"
)
_SECRET_NAME = re.compile(
    r"(?:pass(?:word|wd|phrase)|pwd|secret|token|(?:api|access|auth|secret|private)[ _-]?key|authorization"
    r"|密码|口令|密钥|令牌)(?: is|是|为)?[\"'`\]]{0,2}\s*\Z"
)
_NO_SECRET = re.compile(r"(?::|(?:next|page|continuation|lock|change|request|idempotency)[_-]?)\Z")
"""Stands before the name of what is no secret: a token of one request, or the last part of a path with colons."""
_PLACEHOLDER = re.compile(r"example|your|placeholder|dummy|changeme|1234567|abcdefg|(.)\1{4}", re.IGNORECASE)
_NAME_CHARACTERS = 40
_LEAST_ENTROPY = 2.6
"""Bits a character; 99 of 100 random keys of 16 hexadecimal digits have more, and nearly all that are longer."""
_LEAST_CHANGES = 0.4
"""Changes between small letters, capitals, digits and signs, a character; words have few."""
_KINDS_OF_CHARACTERS = tuple(re.compile(f"[{kind}]+") for kind in ("a-z", "A-Z", "0-9", "^A-Za-z0-9"))
_NUMBER = re.compile("[0-9]+")
_WORD = re.compile("[A-Za-z]*[0-9]{0,4}")


def _keys(text: str) -> Iterator[_Secret]:
    for name, signs, pattern in _SERVICES:
        if any(sign in text for sign in signs):
            for match in pattern.finditer(text):
                key = match[0]
                if name == _PRIVATE_KEY or _is_random(key, is_known=name != "OpenAI key"):
                    beginning = "" if name == _PRIVATE_KEY else f" {key[:4]}…"
                    yield _Secret(*match.span(), f"{name}{beginning} ({len(key)} characters)")
    for match in _ASSIGNED.finditer(text):
        start, end = match.span("value")
        before = text[max(0, match.start() - _NAME_CHARACTERS) : match.start()].lower()
        name_found = _SECRET_NAME.search(before)
        if name_found and not _NO_SECRET.search(before[: name_found.start()]) and _is_random(match["value"]):
            yield _Secret(start, end, f"{name_found[0].strip()}: … ({end - start} characters)")


def _is_random(key: str, *, is_known: bool = False) -> bool:
    """Whether a key looks drawn at random: neither a name, nor made up as an example.

    Args:
        is_known: whether the shape alone is telling, so that only examples have to be told apart.
    """
    if _PLACEHOLDER.search(key):
        return False
    counts = Counter(key)
    if -sum(count / len(key) * math.log2(count / len(key)) for count in counts.values()) < _LEAST_ENTROPY:
        return False
    if is_known:
        return True
    if not re.search("[A-Za-z]", key) or all(_WORD.fullmatch(piece) for piece in re.split("[_/-]+", key)):
        return False
    changes = sum(len(kind.findall(key)) for kind in _KINDS_OF_CHARACTERS) - 1
    return len(_NUMBER.findall(key)) > 1 or (bool(_NUMBER.search(key)) and changes >= _LEAST_CHANGES * len(key))


# The shortest key has 20 characters; a value after its name, which may stand in quotation marks, 12.
API_KEY = _private_rule(
    "api_key",
    "hold keys or tokens of services",
    "[KEY]",
    _shape_finder(
        {"a": string.ascii_letters + string.digits + "!@#%^&*~+/_-", " ": " ", "=": ":=?"},
        (20 * "a", *(before + 12 * "a" for before in ("=", "= ", "=  "))),
        dropped=">\"'`",
    ),
    _keys,
)
"""Keys and tokens of well-known services by their shapes, private keys whole, and values after such names as password,
secret, token and API key that look drawn at random. Passwords that are words are not told from other words."""
