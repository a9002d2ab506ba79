"""Names of languages in place of codes that read like words."""

from tunesmith.data.checks import language
from tunesmith.data.checks.language import language_of
from tunesmith.data.checks.language_names import language_name


def test_codes_get_their_names() -> None:
    assert [language_name(code) for code in ("no", "zh", "or", "")] == ["Norwegian", "Chinese", "Odia", "unknown"]
    assert language_name("qqq") == "qqq"
    assert language_name(language_of("猫坐在垫子上，看着窗外的鸟儿飞过。")) == "Chinese"


def test_every_language_that_is_told_has_a_name() -> None:
    codes = {*language._ONE_LANGUAGE.values(), *(code for codes in language._LANGUAGES.values() for code in codes)}
    assert len(codes) > 60
    for code in codes - {"zxx"}:  # py3langid's code for no language, which is not told
        assert language_name(code) != code
