"""Private data of each kind is found and taken out, what only looks like it is left, and excerpts give nothing away."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.chats import chat, plain_text
from tunesmith.data.checks.rules import EXCERPT_CHARACTERS, TextRule
from tunesmith.data.checks.text.private import API_KEY, CARD_NUMBER, EMAIL, NATIONAL_ID, PHONE

RULES = (EMAIL, PHONE, CARD_NUMBER, NATIONAL_ID, API_KEY)

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def key(length: int, alphabet: str = _LETTERS, seed: int = 4) -> str:
    """A key that no service gave out."""
    return "".join(random.Random(seed).choices(alphabet, k=length))


PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{key(64)}\n{key(64, seed=5)}\n-----END RSA PRIVATE KEY-----"
JWT = f"eyJ{key(30)}.eyJ{key(40)}.{key(43)}"

FOUND = {
    EMAIL: ["anna.meier@gmail.com", "li_wei+news@mail.uni-x.edu", "x@foo.io", "O'Neil-88@a-b.co.uk", "info@qq.com"],
    PHONE: [
        "(555) 123-4567",
        "(212)555-4567",
        "555-123-4567",
        "1-800-555-4567",
        "212.556.4567",
        "212 556-4567",
        "+1 212 556 4567",
        "+12125564567",
        "+44 (0)20 7123 4567",
        "+49 30 123456",
        "+33 6 12 34 56 78",
        "+8613812345678",
        "0086 13812345678",
        "13812345678",
        "138-1234-5678",
        "138 1234 5678",
        "010-12345678",
        "0755-1234567",
        "（021）12345678",
    ],
    CARD_NUMBER: [
        "4111111111111111",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "5555555555554444",
        "2223003122003222",
        "3782 822463 10005",
        "6011000990139424",
        "3530111333300000",
        "3056 930902 5904",
        "6200000000000005",
        "6205 5000 0000 0000 004",
        "4222222222222",
    ],
    NATIONAL_ID: [
        "11010519491231002X",
        "11010519491231002x",
        "110105 19491231 002X",
        "123-45-6789",
        "123 45 6789",
        "12345678Z",
        "12345678-Z",
        "X-1234567-L",
        "255081416802538",
        "2 55 08 14 168 025 38",
        "RSSMRA85T10A562S",
        "529.982.247-25",
        "900101-1234568",
    ],
    API_KEY: [
        "AKIA" + key(16, "ABCDEFGHJKLMNPQRSTUVWXYZ234567"),
        "ghp_" + key(36),
        f"github_pat_{key(22)}_{key(59)}",
        "sk-" + key(48),
        "sk-proj-" + key(80),
        f"sk-ant-api03-{key(93)}AA",
        f"xoxb-{key(12, '0123456789')}-{key(24)}",
        "AIza" + key(35),
        "sk_live_" + key(24),
        "hf_" + key(34),
        "glpat-" + key(20),
        "npm_" + key(36),
        "pypi-AgEIcHlwaS5vcmc" + key(90),
        f"SG.{key(22)}.{key(43)}",
        "SK" + key(32, "0123456789abcdef"),
        JWT,
        PEM,
    ],
}

KINDS = [(rule, secret) for rule, secrets in FOUND.items() for secret in secrets]

LEFT = {
    EMAIL: [
        "jane@example.com",
        "jane@mail.example.org",
        "a@b.test",
        "git@github.com:owner/name.git",
        "icon@2x.png",
        "lodash@4.17.21",
        "pkg@1.2.0-beta.rc",
        "follow @tunesmith",
        "at 5 @ 3.20 each",
    ],
    PHONE: [
        "(212) 555-0123",
        "212-555-0199",
        "+44 20 7946 0958",
        "123-456-7890",
        "<<900-100-2000=-1200>>",
        "555-123-4567 = -4135",
        "2000-2015",
        "12/10/2020 15:30",
        "978-0-306-40615-7",
        "192.168.100.1",
        "v1.2.3456789",
        "$13812345678",
        "13800000000 people",
        "order ORD-555-123-4567",
        "138123456789012",
        "3.13812345678",
        "13812345678 = 2 * 6906172839",
        "13812345678元",
        "100 200 3000",
        "+49.12345678",
        "+35593959807306E261",
    ],
    CARD_NUMBER: [
        "4111111111111112",
        "1234567812345670",
        "0.4111111111111111",
        "ID-4111111111111111",
        "41111111111111111111",
        "4111-1111 1111-1111",
        "1999 2000 2001 2002",
        "1111 4111 1111 1111 1111",
        "4111 1111 1111 1111 1111",
        "978030640615",
    ],
    NATIONAL_ID: [
        "110105194912310021",
        "000-12-3456",
        "666-12-3456",
        "912-12-3456",
        "123-00-4567",
        "123-45-0000",
        "123-45-6789-0",
        "10 123 45 6789 12",
        "12345678A",
        "doi:10.1137/10081232X",
        "RSSMRA85T10A562T",
        "529.982.247-26",
        "111.111.111-11",
        "2341 2341 2346",
        "AB 12 34 56 C",
        "1 2000 2001 2002",
    ],
    API_KEY: [
        "AKIAIOSFODNN7EXAMPLE",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "sk-folding-cube-animation-wrapper",
        "password = my_password_field",
        "password: ${DATABASE_PASSWORD}",
        "token = tokenizer.convert_tokens_to_ids(words)",
        "secret = os.environ['SECRET_NAME_OF_APP']",
        "api_key = YOUR_API_KEY_GOES_HERE_123",
        "The secret: communication and understanding",
        "token = 1234567890123456",
        '"nextToken": "9d624e0c-388b-4862-a31e-a85c64fc1d4a"',
        "arn:aws:secretsmanager:secret:MyTestSecret-a1b2c3",
        "-----BEGIN PRIVATE KEY----- and -----END PRIVATE KEY----- enclose it",
        "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
    ],
}


def mended(rule: TextRule, text: str) -> str:
    assert rule.mend
    text_without = rule.mend(plain_text(text)).text
    assert text_without is not None
    return text_without


@pytest.mark.parametrize(("rule", "secret"), KINDS)
@pytest.mark.parametrize(
    "around", ["{}", "Call {}, please.", "({})", "联系：{}。谢谢", 'He said "{}".', "- {}\n- none"]
)
def test_a_secret_is_found_masked_and_taken_out(rule: TextRule, secret: str, around: str) -> None:
    text = around.format(secret)
    shown = rule.find(plain_text(text))
    assert shown
    assert len(shown) <= EXCERPT_CHARACTERS
    assert shown.isprintable()
    assert secret not in shown
    mark = {EMAIL: "[EMAIL]", PHONE: "[PHONE]", CARD_NUMBER: "[CARD]", NATIONAL_ID: "[ID]", API_KEY: "[KEY]"}[rule]
    assert mended(rule, text) == around.format(mark)


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in LEFT.items() for text in texts])
def test_what_only_looks_like_a_secret_is_left(rule: TextRule, text: str) -> None:
    for written in (text, f"It is {text}, see there.", f"这是 {text}。"):
        assert rule.find(plain_text(written)) is None
        assert mended(rule, written) == written


@pytest.mark.parametrize(
    "named",
    [
        'password = "{}"',
        "DB_PASSWORD={}",
        '"api_key": "{}"',
        "secret: {}",
        "Authorization: Bearer {}",
        "密码：{}",
        "?access_token={}",
    ],
)
def test_a_value_at_random_is_a_key_after_the_name_of_one(named: str) -> None:
    value = key(24)
    assert API_KEY.find(plain_text(named.format(value)))
    assert mended(API_KEY, named.format(value)) == named.format("[KEY]")
    assert API_KEY.find(plain_text(f"checksum = {value}")) is None


@pytest.mark.parametrize("text", ["Aadhaar number: 2341 2341 2346", "आधार 234123412346", "My NINO is AB 12 34 56 C."])
def test_numbers_that_anything_might_be_need_their_name(text: str) -> None:
    assert NATIONAL_ID.find(plain_text(text))


def test_excerpts_show_the_kind_and_a_masked_form() -> None:
    assert EMAIL.find(plain_text("jane@foo.org")) == "j…@foo.org"
    assert CARD_NUMBER.find(plain_text("4111 1111 1111 1111")) == "card number …1111 (16 digits)"
    assert NATIONAL_ID.find(plain_text("123-45-6789")) == "US Social Security number …89"
    assert PHONE.find(plain_text("13812345678")) == "telephone number …78 (11 digits)"
    assert API_KEY.find(plain_text(FOUND[API_KEY][0])) == "AWS key AKIA… (20 characters)"


def test_a_card_and_its_check_code_are_told_apart() -> None:
    assert mended(CARD_NUMBER, "4111 1111 1111 1111 123") == "[CARD] 123"
    assert mended(CARD_NUMBER, "4111111111111111 2031 ok") == "[CARD] 2031 ok"


def test_a_key_after_its_name_is_one_finding() -> None:
    assert mended(API_KEY, f'api_key = "sk-{key(48)}"') == 'api_key = "[KEY]"'


def test_a_number_that_another_kept_from_being_seen_is_taken_out_too() -> None:
    assert mended(PHONE, "+8613812345678-13987654321") == "[PHONE]-[PHONE]"


def test_every_message_is_searched() -> None:
    for role in ("system", "user", "assistant"):
        example = chat("system: a", "user: b", "assistant: c", f"{role}: write to jane@foo.org")
        assert EMAIL.find(example)
        assert EMAIL.mend
        assert EMAIL.mend(example).messages[-1].content == "write to [EMAIL]"


@given(
    st.lists(
        st.one_of(st.sampled_from([secret for _, secret in KINDS]), st.text(max_size=5), st.sampled_from(" -+.@/=1")),
        max_size=6,
    )
)
def test_mending_leaves_nothing_to_find_and_nothing_to_mend(pieces: list[str]) -> None:
    example = plain_text("".join(pieces))
    for rule in RULES:
        assert rule.mend
        once = rule.mend(example)
        assert rule.find(once) is None
        assert rule.mend(once) is once
        assert (once is example) == (rule.find(example) is None)


@given(st.text())
def test_any_text_can_be_searched(text: str) -> None:
    for rule in RULES:
        found = rule.find(plain_text(text))
        assert found is None or found, "an excerpt, or nothing"


@pytest.mark.parametrize(
    "unit",
    [
        "a@",
        "a.",
        "a@a.",
        "1",
        "13800000000",
        "1.",
        "1-",
        "1 ",
        "4111 ",
        "+1 ",
        "(",
        "-----BEGIN PRIVATE KEY-----",
        "=aB1",
        "eyJa.",
        "sk-a1",
        "\n",
        "\ud800",
    ],
)
def test_time_grows_with_the_length_only(unit: str) -> None:
    example = plain_text("token=+a@" + unit * (100_000 // len(unit)))
    for rule in RULES:
        start = time.process_time()
        rule.find(example)
        assert time.process_time() - start < 0.5  # takes a tenth of it; were it quadratic, minutes
