"""The committed demo data: reproducible, well-formed, answerable from the message, and without leakage."""

import difflib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SPLIT_SIZES = {
    "orders": {"train": 600, "validation": 48, "test": 72},
    "orders_zh": {"train": 160, "validation": 24, "test": 32},
}
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DAY_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "orders": {**{day: (day, day[:3]) for day in WEEKDAYS}, "today": ("today",), "tomorrow": ("tomorrow",)},
    "orders_zh": {
        **{f"周{day}": (f"周{day}", f"星期{day}", f"礼拜{day}") for day in "一二三四五六"},
        "周日": ("周日", "星期天", "礼拜天"), "今天": ("今天",), "明天": ("明天",),
    },
}  # fmt: skip
"""Ways to say each day a message may name."""
QUANTITY_WORDS: dict[str, dict[int, tuple[str, ...]]] = {
    "orders": {
        1: ("a", "an", "one", "1"), 2: ("two", "2", "couple"), 3: ("three", "3"), 4: ("four", "4"), 5: ("five", "5"),
        6: ("six", "6", "half"), 8: ("eight", "8"), 10: ("ten", "10"), 12: ("twelve", "12", "dozen"),
    },
    "orders_zh": {
        1: ("一", "1"), 2: ("两", "2"), 3: ("三", "3"), 4: ("四", "4"), 5: ("五", "5"), 6: ("六", "6"),
        8: ("八", "8"), 10: ("十", "10"), 12: ("十二", "12"),
    },
}  # fmt: skip
SIZE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "orders": {"small": ("small", "little"), "medium": ("medium",), "large": ("large", "big")},
    "orders_zh": {"大": ("大",), "中": ("中",), "小": ("小",)},
}
DELIVERIES = {"orders": {"pickup", "courier", "locker"}, "orders_zh": {"自取", "快递", "快递柜"}}
IRREGULAR_PLURALS = {"knife": "knives", "scarf": "scarves", "shelf": "shelves"}

Row = tuple[str, str]
"""The message, and the answer as it stands in the file."""


def read_rows(dataset: str, split: str) -> list[Row]:
    """The rows of one committed file, each checked to be one user turn and one assistant turn."""
    rows = []
    for line in (ROOT / "data" / dataset / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        assert list(fields) == ["messages"]
        user, assistant = fields["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        rows.append((user["content"], assistant["content"]))
    return rows


def all_rows(dataset: str) -> list[Row]:
    return [row for split in SPLIT_SIZES[dataset] for row in read_rows(dataset, split)]


def grams(message: str, dataset: str) -> set[tuple[str, ...]]:
    """3-grams of words, or of characters for Chinese."""
    tokens = re.findall(r"\w" if dataset == "orders_zh" else r"\w+", message.lower())
    return {tuple(tokens[at : at + 3]) for at in range(len(tokens) - 2)}


def says_any(message: str, forms: Iterable[str]) -> bool:
    """Whether a message holds one of the forms: as a word, typos of long words included, or as Chinese text."""
    said = re.findall(r"[a-z]+|\d+", message.lower())
    for form in forms:
        if form in said or (not form.isascii() and form in message) or (form.isdigit() and form in message):
            return True
        if len(form) > 5 and difflib.get_close_matches(form, said, n=1, cutoff=0.8):
            return True
    return False


def names_item(message: str, name: str) -> bool:
    """Whether a message names an item, in singular or plural."""
    return name in message or all(
        says_any(message, (word, f"{word}s", f"{word}es", IRREGULAR_PLURALS.get(word, word))) for word in name.split()
    )


def test_the_committed_files_are_what_the_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/make_demo_data.py"), "--output", str(tmp_path)], check=True)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    committed = {path.relative_to(ROOT / "data"): path.read_bytes() for path in (ROOT / "data").rglob("*.jsonl")}
    assert len(made) == 6
    assert made == {path: committed.get(path) for path in made}


def test_another_seed_makes_other_messages(tmp_path: Path) -> None:
    script = str(ROOT / "scripts/make_demo_data.py")
    subprocess.run([sys.executable, script, "--output", str(tmp_path), "--seed", "1"], check=True)
    made = (tmp_path / "orders" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    committed = (ROOT / "data/orders/test.jsonl").read_text(encoding="utf-8").splitlines()
    assert not set(made) & set(committed)


@pytest.mark.parametrize("dataset", SPLIT_SIZES)
def test_split_sizes(dataset: str) -> None:
    assert {split: len(read_rows(dataset, split)) for split in SPLIT_SIZES[dataset]} == SPLIT_SIZES[dataset]


@pytest.mark.parametrize("dataset", SPLIT_SIZES)
def test_no_two_messages_are_near_duplicates(dataset: str) -> None:
    """Within a split and across: Jaccard similarity of 3-grams below one half."""
    all_grams = [grams(message, dataset) for message, _ in all_rows(dataset)]
    similar = [
        (first, second)
        for first, second in itertools.combinations(all_grams, 2)
        if 2 * len(first & second) >= len(first | second)
    ]
    assert similar == []


@pytest.mark.parametrize("dataset", SPLIT_SIZES)
def test_answers_follow_the_schema(dataset: str) -> None:
    for _, text in all_rows(dataset):
        order: dict[str, Any] = json.loads(text)
        assert text == json.dumps(order, ensure_ascii=False, separators=(",", ":"))
        assert list(order) == ["items", "delivery", "day", "gift"]
        assert order["delivery"] in DELIVERIES[dataset]
        assert order["day"] is None or order["day"] in DAY_WORDS[dataset]
        assert isinstance(order["gift"], bool)
        assert 1 <= len(order["items"]) <= 3
        assert len({item["name"] for item in order["items"]}) == len(order["items"])
        for item in order["items"]:
            assert list(item) == ["name", "quantity", "size"]
            assert type(item["quantity"]) is int
            assert item["quantity"] in QUANTITY_WORDS[dataset]
            assert item["size"] is None or item["size"] in SIZE_WORDS[dataset]


@pytest.mark.parametrize("dataset", SPLIT_SIZES)
def test_every_item_is_named_in_the_message(dataset: str) -> None:
    missing = [
        (message, item["name"])
        for message, text in all_rows(dataset)
        for item in json.loads(text)["items"]
        if not names_item(message, item["name"])
    ]
    assert missing == []


@pytest.mark.parametrize("dataset", SPLIT_SIZES)
def test_every_quantity_and_size_is_said(dataset: str) -> None:
    for message, text in all_rows(dataset):
        for item in json.loads(text)["items"]:
            assert says_any(message, QUANTITY_WORDS[dataset][item["quantity"]]), (message, item)
            assert item["size"] is None or says_any(message, SIZE_WORDS[dataset][item["size"]]), (message, item)


@pytest.mark.parametrize("dataset", SPLIT_SIZES)
def test_the_day_is_said_and_null_where_it_is_not(dataset: str) -> None:
    for message, text in all_rows(dataset):
        day = json.loads(text)["day"]
        if day is None:
            assert not any(says_any(message, said) for said in DAY_WORDS[dataset].values()), message
        else:
            assert says_any(message, DAY_WORDS[dataset][day]), message


def test_delivery_is_said_and_pickup_where_it_is_not() -> None:
    ways = {"courier": ("courier", "delivery", "deliver", "delivered", "ship", "bring", "send"), "locker": ("locker",)}
    for message, text in all_rows("orders"):
        delivery = json.loads(text)["delivery"]
        # What is refused, and the label of the field, in their misspelt forms too ("no coureir").
        plain = re.sub(r"no c\w+r,|don't send|not the l\w+r|(?<!home )\bdel\w+y:", "", message.lower())
        said = {way for way, evidence in ways.items() if says_any(plain, evidence)}
        assert said == {delivery} - {"pickup"}, message


def test_chinese_delivery_is_said_and_pickup_where_it_is_not() -> None:
    for message, text in all_rows("orders_zh"):
        plain = re.sub("不用快递|不用上门", "", message)
        said = "快递柜" if "快递柜" in plain else "快递" if re.search("快递|送货上门", plain) else "自取"
        assert said == json.loads(text)["delivery"], message


def test_gift_is_said_and_false_where_it_is_not() -> None:
    for message, text in all_rows("orders"):
        denied = re.search(r"(no|not|n't|skip)\b[^.!?;/-]*\b(gift|wrap|present)\b", message.lower())
        said = says_any(message, ("gift", "wrap", "wrapping", "present"))
        assert json.loads(text)["gift"] == (said and not denied), message


def test_chinese_gift_is_said_and_false_where_it_is_not() -> None:
    for message, text in all_rows("orders_zh"):
        plain = re.sub("不用包装|不是送人的|别包礼品纸|不要礼品包装", "", message)
        assert json.loads(text)["gift"] == bool(re.search("礼物|礼品|送人", plain)), message


@pytest.mark.parametrize("dataset", SPLIT_SIZES)
def test_classes_are_balanced(dataset: str) -> None:
    """Within 3 to 1, in each split."""
    for split in SPLIT_SIZES[dataset]:
        orders = [json.loads(text) for _, text in read_rows(dataset, split)]
        for field in ("delivery", "gift"):
            counts = Counter(order[field] for order in orders).values()
            assert max(counts) <= 3 * min(counts), (split, field)


@pytest.mark.parametrize("dataset", SPLIT_SIZES)
def test_no_personal_data(dataset: str) -> None:
    """No addresses, links, phone or card numbers; a quantity has at most two digits."""
    for message, _ in all_rows(dataset):
        assert not re.search(r"\d{3}|@|https?:|www\.", message), message


def test_many_items_and_ways_to_say_it() -> None:
    rows = read_rows("orders", "train")
    names = {item["name"] for _, text in rows for item in json.loads(text)["items"]}
    openings = {" ".join(message.lower().split()[:3]) for message, _ in rows}
    assert len(names) >= 40
    assert len(openings) >= 100
