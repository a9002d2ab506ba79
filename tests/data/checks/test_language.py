"""The language of a text, by script, by small words and by model."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.language import language_of, mentions_language

SENTENCES = {
    "en": "The parcel that you sent to our office was opened before it got there.",
    "zh": "你寄到办公室的包裹，在送达之前就被打开了。",
    "ja": "事務所に送っていただいた小包は、届く前に開けられていました。",
    "ko": "사무실로 보내 주신 소포는 도착하기 전에 열려 있었습니다.",
    "de": "Das Paket, das Sie an unser Büro geschickt haben, wurde vorher geöffnet.",
    "fr": "Le colis que vous avez envoyé à notre bureau a été ouvert avant d'arriver.",
    "es": "El paquete que usted envió a nuestra oficina fue abierto antes de llegar.",
    "pt": "O pacote que você enviou ao nosso escritório foi aberto antes de chegar.",
    "it": "Il pacco che avete spedito al nostro ufficio è stato aperto prima dell'arrivo.",
    "nl": "Het pakket dat u naar ons kantoor hebt gestuurd, is eerder geopend.",
    "pl": "Paczka, którą wysłali państwo do naszego biura, została wcześniej otwarta.",
    "tr": "Ofisimize gönderdiğiniz paket buraya ulaşmadan önce açılmış.",
    "vi": "Gói hàng mà bạn gửi đến văn phòng của chúng tôi đã bị mở trước khi đến.",
    "ru": "Посылка, которую вы отправили в наш офис, была вскрыта раньше.",
    "uk": "Посилка, яку ви надіслали до нашого офісу, була відкрита раніше.",
    "ar": "تم فتح الطرد الذي أرسلته إلى مكتبنا قبل وصوله.",
    "hi": "आपने हमारे कार्यालय को जो पार्सल भेजा था वह पहुँचने से पहले खोला गया था।",
    "el": "Το δέμα που στείλατε στο γραφείο μας ανοίχτηκε πριν φτάσει.",
    "he": "החבילה ששלחת למשרד שלנו נפתחה לפני שהגיעה.",
    "th": "พัสดุที่คุณส่งมาที่สำนักงานของเราถูกเปิดก่อนที่จะมาถึง",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence(code: str) -> None:
    assert language_of(SENTENCES[code]) == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "Positive",
        "东京",
        "Oui",
        "!!! ??? ... --- ###" * 20,
        "\ud800" * 50,
        "x = np.zeros(3)\nfor i in range(3):\n    print(x[i], y[i])",
        '{"items":[{"name":"tomato soup","quantity":6}],"delivery":"pickup","gift":false}',
        "<table><tr><th>Customer name</th><th>Street and city</th></tr></table>",
        "```python\n# read the rows of the file that you were given\n```",
    ],
)
def test_too_short_or_no_language(text: str) -> None:
    assert language_of(text) == ""


@pytest.mark.parametrize("code", ["en", "zh", "de"])
def test_code_addresses_and_numbers_do_not_count(code: str) -> None:
    around = (
        "```\nreturn the value of this to that\n``` https://example.com/with/the/words/of/this 12 + 7 * (3 - 2) = 19\n"
    )
    assert language_of(around + SENTENCES[code]) == code


def test_arithmetic_between_words_is_still_english() -> None:
    assert (
        language_of("Kim walks 3*4=12 miles a day.\nSo in 5 days Kim walks 12*5=60 miles.\n60-8=52 miles remain")
        == "en"
    )


def test_foreign_terms_within_chinese() -> None:
    assert language_of("使用Python的pandas库读取CSV文件 read_csv") == "zh"


def test_half_and_half_is_unknown() -> None:
    assert language_of("法国 (France), 英国 (Britain), 德国 (Germany)") == ""


def test_a_quoted_kana_is_still_chinese() -> None:
    assert language_of("日语里的「の」是一个助词，用来表示所属关系，放在两个名词之间。") == "zh"


@given(st.text(max_size=600))
def test_any_text_has_one_answer(text: str) -> None:
    code = language_of(text)
    assert code == language_of(text)
    assert len(code) in (0, 2)


def test_model_is_not_loaded_for_plain_texts() -> None:
    program = (
        "import sys\nfrom tunesmith.data.checks.language import language_of\n"
        f"assert language_of({SENTENCES['en']!r}) == 'en' and language_of({SENTENCES['zh']!r}) == 'zh'\n"
        "assert 'py3langid' not in sys.modules"
    )
    subprocess.run([sys.executable, "-X", "utf8", "-c", program], check=True)


@pytest.mark.parametrize(
    "text",
    [
        "Translate this: good night",
        "how do i say hello in french?",
        "把这句话翻译一下：good night",
        "请用英语回答。",
        "次の文をフランス語にしてください。",
        "다음 문장을 영어로 바꾸세요.",
        "Traduisez la phrase suivante.",
        "Переведите это предложение.",
        "Read this.\n" + "word " * 1000 + "\nAnswer in German.",
        "ANSWER IN SPANISH",
    ],
)
def test_speaks_of_languages(text: str) -> None:
    assert mentions_language(text)


@pytest.mark.parametrize("text", ["", "polish the table and the chairs.", "写一首关于春天的诗。", "What is 3 + 4?"])
def test_does_not_speak_of_languages(text: str) -> None:
    assert not mentions_language(text)
