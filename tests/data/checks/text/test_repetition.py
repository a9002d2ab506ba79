import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.text.repetition import REPEATED_TEXT
from tunesmith.data.records import Example, Message, Place

SENTENCE = "The quick brown fox jumps over the lazy dog near the river."
CHINESE = "今天的天气非常好，我们一起去公园散步。"
GOOD = (
    "Bread rises because yeast eats sugar and gives off gas. The dough traps that gas in a net of gluten. "
    "Heat then sets the walls, and what was a bubble stays as a hole."
)
VERBS = ("read", "explain", "compare", "draw", "judge", "retell", "question", "defend", "rewrite")


def found(text: str, prompt: str = "Tell me something.") -> str | None:
    return REPEATED_TEXT.find(Example((Message("user", prompt), Message("assistant", text)), Place("train.jsonl", 1)))


@pytest.mark.parametrize(
    "text",
    [
        " ".join([SENTENCE] * 5),
        GOOD + " " + " ".join([SENTENCE] * 6),
        "\n".join(f"{number}. {SENTENCE}" for number in range(1, 8)),
        "\n\n".join([GOOD] * 4),
        "\n".join(["A walk in the park is good.", "It is good to be outside.", "Fresh air is good for you."] * 5),
        "so " * 60,
        "the best of " * 30,
        (GOOD[:100] + " and then we go" * 40)[:555],
        CHINESE * 5,
        "\n".join(f"{number}. {CHINESE}" for number in range(1, 8)),
        "春天来了，花都开了。" + "我很高兴，" * 40,
        "とても楽しいです。" * 20,
    ],
)
def test_an_answer_that_goes_round_in_circles_is_found(text: str) -> None:
    assert found(text) is not None


@pytest.mark.parametrize("copies", range(4, 24))
def test_a_loop_is_found_whatever_the_number_of_its_copies(copies: int) -> None:
    assert found("\n".join(f"Item {number}: {SENTENCE}" for number in range(1, copies + 1))) is not None
    assert found(" ".join([SENTENCE] * copies)) is not None


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "\n".join(f"- The student will be able to {verb} the main ideas of the text." for verb in VERBS),
        "\n".join(f"There are {number} apples in basket number {number}." for number in range(1, 16)),
        "\n".join(f"{a} times {b} is {a * b}." for a in range(2, 6) for b in range(1, 11)),
        "\n".join(f"He earns {n} dollars, so in {n} weeks 10*{n}=<<10*{n}={10 * n}>>{10 * n}." for n in range(2, 9)),
        "| item | state |\n|---|---|\n" + "| the same old thing | still in a good state |\n" * 12,
        "the cat\tsat on the mat\n" * 12,
        "[\n" + ",\n".join(['  {"name": "the quick brown fox", "required": true}'] * 10) + "\n]",
        "Here:\n```\n" + "print the quick brown fox and the lazy dog\n" * 10 + "```\nThat prints it.",
        "    say('the quick brown fox jumps over the lazy dog');\n" * 10,
        " ".join(str(number % 7) for number in range(200)),
        "01" * 200,
        "Title\n" + "-" * 80 + "\nText follows.\n" + "=" * 80,
        "\n".join(f"{number}. Positive sentiment" for number in range(1, 15)),
        "\n".join(f"客户：请问这个产品的价格是多少？\n客服：您好，这款产品的价格是{n}0元。" for n in range(1, 8)),
        "\n".join(
            f"{n}. 每天早上{verb}，可以帮助你保持身体健康。"
            for n, verb in enumerate(["跑步", "喝水", "读书", "做操"], 1)
        ),
        "哈哈哈哈哈哈哈哈，这个笑话太好笑了，我已经笑得停不下来。",
    ],
)
def test_what_follows_a_pattern_is_left_alone(text: str) -> None:
    assert found(text) is None


def test_a_song_with_a_refrain_is_left_alone() -> None:
    refrain = "Oh carry me home, carry me home\nOver the hills where the wild birds roam\nUnder the light of the dome"
    verses = [
        f"I walked along a road of {thing}\nand nobody here has ever {did}\nthe river knows the name of {who}"
        for thing, did, who in (("stone", "known", "the lost"), ("glass", "passed", "frost"), ("sand", "planned", "us"))
    ]
    assert found("\n\n".join(f"{verse}\n\n{refrain}" for verse in verses)) is None


@pytest.mark.parametrize("prompt", ["Repeat this ten times.", "Write it 5 times.", "把这句话重复五遍"])
def test_an_answer_that_was_asked_to_repeat_is_left_alone(prompt: str) -> None:
    assert found(" ".join([SENTENCE] * 5), prompt) is None


def test_prompts_are_not_looked_at_but_plain_text_is() -> None:
    loop = " ".join([SENTENCE] * 5)
    assert found(GOOD, prompt=loop) is None
    assert REPEATED_TEXT.find(Example((), Place("train.jsonl", 1), text=loop)) is not None


def test_the_evidence_is_what_is_repeated() -> None:
    evidence = found(GOOD + " " + " ".join([SENTENCE] * 9))
    assert evidence is not None
    assert "quick brown fox" in evidence
    assert len(evidence) <= 80


@given(st.lists(st.text(st.characters(categories=("Ll", "Lo")), min_size=3, max_size=9), min_size=12, unique=True))
def test_text_without_a_word_said_twice_is_left_alone(words: list[str]) -> None:
    assert found(" ".join(words)) is None
