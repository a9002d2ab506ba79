"""Makes the demo data: messages of a shop's customers, and the order in each as one line of strict JSON.

The order is drawn first, then written as a message, so the answer is right by construction. One seed gives the same
bytes on every machine. No two messages of a language are near-duplicates (see `too_similar`), in one split or across.

    python scripts/make_demo_data.py --output data
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SEED = 20260
NEAR_DUPLICATE = 0.5
"""Jaccard similarity of 3-grams from which two messages count as near-duplicates."""

Grams = set[tuple[str, str, str]]

DELIVERIES = ("pickup", "courier", "locker")
QUANTITIES = (1,) * 7 + (2,) * 5 + (3,) * 4 + (4,) * 3 + (5, 5, 6, 6, 8, 10, 12)

# English ---------------------------------------------------------------------------------------------------------

COUNTED = {
    "apron": "aprons", "backpack": "backpacks", "basket": "baskets", "bath mat": "bath mats", "blanket": "blankets",
    "bowl": "bowls", "brush": "brushes", "candle": "candles", "clock": "clocks", "cushion": "cushions",
    "cutting board": "cutting boards", "dish": "dishes", "kite": "kites", "knife": "knives", "lamp": "lamps",
    "lantern": "lanterns", "mirror": "mirrors", "mug": "mugs", "notebook": "notebooks", "pencil": "pencils",
    "picture frame": "picture frames", "pillow": "pillows", "plate": "plates", "puzzle": "puzzles", "scarf": "scarves",
    "shelf": "shelves", "sponge": "sponges", "tea towel": "tea towels", "teapot": "teapots",
    "toothbrush": "toothbrushes", "tote bag": "tote bags", "tray": "trays", "umbrella": "umbrellas", "vase": "vases",
    "water bottle": "water bottles", "whisk": "whisks",
}  # fmt: skip
"""Goods that are counted: name in the answer, plural in the message."""

MEASURED = {
    "black tea": ("box", "boxes"), "bread": ("loaf", "loaves"), "butter": ("pack", "packs"),
    "cat food": ("can", "cans"), "chocolate": ("bar", "bars"), "coffee": ("bag", "bags"), "flour": ("bag", "bags"),
    "green tea": ("box", "boxes"), "honey": ("jar", "jars"), "jam": ("jar", "jars"), "milk": ("carton", "cartons"),
    "olive oil": ("bottle", "bottles"), "orange juice": ("bottle", "bottles"), "pasta": ("pack", "packs"),
    "peanut butter": ("jar", "jars"), "rice": ("bag", "bags"), "salt": ("packet", "packets"),
    "shampoo": ("bottle", "bottles"), "soap": ("bar", "bars"), "sugar": ("bag", "bags"), "tomato soup": ("can", "cans"),
    "vinegar": ("bottle", "bottles"),
}  # fmt: skip
"""Goods that come in a container, which the answer leaves out: name, container, its plural."""

NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 12: "twelve"}
VAGUE_WORDS = {2: "a couple of", 6: "half a dozen", 12: "a dozen"}
SIZES = {"small": ("small", "little"), "medium": ("medium", "medium-sized"), "large": ("large", "big")}
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

GREETINGS = (
    "Hi,", "Hello,", "Hey,", "Hi there!", "Good morning,", "Good evening!", "Hello again!", "Dear shop,", "Hi team,",
    "Hope you are well.", "Me again!", "Quick one:",
)  # fmt: skip
CLOSINGS = (
    "Thanks!", "Thank you!", "Cheers.", "Many thanks.", "Thanks a lot!", "That's all.", "Much appreciated.",
    "Love your shop!", "Have a nice day!", "Last week's order was great.", "Sorry for the rush.", "Please confirm.",
)  # fmt: skip
REQUESTS = (
    "I'd like {items}.", "Can I get {items}?", "Could I order {items}?", "I want to order {items}.", "We need {items}.",
    "I'm after {items}.", "{items}, please.", "May I have {items}?", "Just {items} for me.", "I'll take {items}.",
    "New order: {items}.", "Put me down for {items}.", "We're running low, so {items} please.", "I need {items}.",
    "My shopping list: {items}.", "Let me order {items}.", "I was hoping to buy {items}.", "Please get me {items}.",
    "Time to restock: {items}.", "Do you have {items}? I'll take them.", "What I need is {items}.", "{items} for me.",
    "Please add {items} to my order.", "For the office we want {items}.", "Is it possible to get {items}?",
)  # fmt: skip
REQUESTS_WITH_DELIVERY = {
    "courier": (
        "Please deliver {items} to my door{day}.", "Can a courier bring {items}{day}?", "Courier order{day}: {items}.",
        "Please ship {items} to my house{day}.", "For home delivery{day}: {items}.", "Send me {items} by courier{day}.",
        "Could you have {items} delivered to my flat{day}?",
    ),
    "locker": (
        "Please put {items} in the parcel locker{day}.", "For the locker{day}: {items}.",
        "Could you leave {items} in a locker for me{day}?", "Drop {items} in my parcel locker{day}, please.",
        "I want {items} in the locker{day}.",
    ),
    "pickup": (
        "I'll come by{day} to pick up {items}.", "For pickup{day}: {items}.", "Can I collect {items} in store{day}?",
        "I'd like to pick up {items}{day}.",
    ),
}  # fmt: skip
DELIVERY_SENTENCES = {
    "courier": (
        "By courier{day}, please.", "Please deliver it to my door{day}.", "Send it by courier{day}.",
        "Home delivery{day}, please.", "Can a courier bring it round{day}?", "Have it delivered to my home{day}.",
        "I can't come in, so please send a courier{day}.", "Ship it to my house{day}.", "Bring it to my place{day}.",
        "I can't pick it up, a courier{day} please.", "Not the locker, please use a courier{day}.",
    ),
    "locker": (
        "Put it in the parcel locker{day}.", "The locker is fine{day}.", "Please drop it in my parcel locker{day}.",
        "Leave it in a locker{day}, please.", "Parcel locker{day}, please.", "I'll use the locker{day}.",
        "No courier, the locker{day} please.", "Nobody is home, so use the locker{day}.",
    ),
    "pickup": (
        "I'll pick it up{day}.", "I'll collect it myself{day}.", "I'll come by the shop{day}.", "Store pickup{day}.",
        "Pickup{day}, please.", "My brother will pick it up{day}.", "I'll swing by to get it{day}.",
        "No courier, I'll collect it{day}.", "Don't send it, I'll pick it up{day}.",
    ),
}  # fmt: skip
DAY_SENTENCES = ("I need it{day}.", "We need this{day}.", "It should be ready{day}.", "It's for a party{day}.")
DAY_PHRASES = (" on {}", " on {}", " on {}", " this {}", " on {} morning", " on {} evening")
GIFT_SENTENCES = {
    True: (
        "It's a present.", "Please gift wrap it.", "Gift wrapping, please.", "It's a gift for my sister, so wrap it.",
        "Could you wrap it as a gift?", "It's a birthday present.", "Please wrap everything, it's a gift.",
        "With gift wrap, please.", "Use nice gift paper.", "It's a surprise gift for a friend.",
    ),
    False: (
        "No gift wrap needed.", "It isn't a gift.", "Don't wrap it, please.", "No need to wrap it.",
        "It's not a present.", "Skip the gift wrap.", "No gift paper, please.",
    ),
}  # fmt: skip

# Chinese ---------------------------------------------------------------------------------------------------------

MEASURES_ZH = {
    "杯子": "个", "茶壶": "个", "花瓶": "个", "盘子": "个", "碗": "个", "书包": "个", "闹钟": "个", "气球": "个",
    "毛巾": "条", "围巾": "条", "铅笔": "支", "牙刷": "支", "本子": "本", "雨伞": "把", "剪刀": "把", "尺子": "把",
    "绿茶": "盒", "红茶": "盒", "牛奶": "盒", "饼干": "盒", "咖啡": "袋", "面粉": "袋", "白糖": "袋", "米": "袋",
    "蜂蜜": "瓶", "橙汁": "瓶", "酱油": "瓶", "油": "瓶", "水": "瓶", "果酱": "瓶", "盐": "包", "面条": "包",
}  # fmt: skip
CONTAINERS_ZH = frozenset("盒袋瓶包")
NUMBER_WORDS_ZH = {1: "一", 2: "两", 3: "三", 4: "四", 5: "五", 6: "六", 8: "八", 10: "十", 12: "十二"}
DELIVERIES_ZH = {"pickup": "自取", "courier": "快递", "locker": "快递柜"}
DAYS_ZH = (*(f"周{day}" for day in "一二三四五六日"), "今天", "明天")
GREETINGS_ZH = ("你好，", "您好，", "老板，", "你好！", "早上好，", "麻烦了，", "在吗？")
CLOSINGS_ZH = ("谢谢！", "谢谢", "辛苦了", "麻烦了", "就这些", "多谢")
REQUESTS_ZH = (
    "我想要{items}", "来{items}", "帮我下单{items}", "给我来{items}", "我要订{items}", "需要{items}", "想买{items}",
    "家里缺货，要{items}", "请给我{items}", "下单：{items}", "我要{items}", "这次要{items}", "可以买{items}吗",
)  # fmt: skip
DELIVERY_SENTENCES_ZH = {
    "courier": ("{day}快递送到家", "请{day}快递给我", "{day}送货上门", "{day}叫快递送来", "我没空去，{day}发快递吧"),
    "locker": ("{day}放快递柜", "{day}放到快递柜就行", "家里没人，{day}放快递柜", "不用上门，{day}放快递柜"),
    "pickup": ("{day}我自己来取", "{day}到店自取", "我{day}过去拿", "不用快递，{day}我来拿", "{day}我路过店里取"),
}  # fmt: skip
DAY_SENTENCES_ZH = ("{day}要用", "{day}要", "{day}来得及吗")
GIFT_SENTENCES_ZH = {
    True: ("是礼物，请包装", "要礼品包装", "送人的，包一下", "请包成礼物", "是生日礼物"),
    False: ("不用包装", "不是送人的", "别包礼品纸", "不要礼品包装"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One line of an order; `size` is None where the customer names none."""

    name: str
    quantity: int
    size: str | None


@dataclass(frozen=True, slots=True)
class Order:
    """What a message asks for, with the values of one language.

    Args:
        items: in the order of their mention, one to three, all with different names.
        delivery: a key of `DELIVERIES`, whatever the language.
        day: None where the customer names none.
        gift: whether to wrap it as a gift; False where the customer says nothing.
    """

    items: tuple[Item, ...]
    delivery: str
    day: str | None
    gift: bool


@dataclass(frozen=True, slots=True)
class Language:
    """How a language draws and writes orders.

    Args:
        names, sizes, days: the values an order is drawn from.
        delivery_values: what the answer calls each of `DELIVERIES`.
        write: the order as a message.
        token: the regular expression of what 3-grams are made of: words or characters, without punctuation.
        length: fewest and most such tokens of a message.
    """

    names: tuple[str, ...]
    sizes: tuple[str, ...]
    days: tuple[str, ...]
    delivery_values: dict[str, str]
    write: Callable[[Order, random.Random], str]
    token: str
    length: tuple[int, int]


def draw_order(language: Language, delivery: str, rng: random.Random) -> Order:
    """A random order with the given delivery."""
    names = rng.sample(language.names, rng.choice((1,) * 6 + (2,) * 5 + (3,)))
    items = tuple(
        Item(name, rng.choice(QUANTITIES), rng.choice(language.sizes) if rng.random() < 0.35 else None)
        for name in names
    )
    day = rng.choice(language.days) if rng.random() < 0.65 else None
    return Order(items, delivery, day, gift=rng.random() < 0.35)


def answer(order: Order, language: Language) -> str:
    """The order as JSON on one line, without spaces, keys always in this sequence."""
    fields = {
        "items": [{"name": item.name, "quantity": item.quantity, "size": item.size} for item in order.items],
        "delivery": language.delivery_values[order.delivery],
        "day": order.day,
        "gift": order.gift,
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


# Writing an English message --------------------------------------------------------------------------------------


def _noun(name: str, quantity: int) -> str:
    if name in COUNTED:
        return name if quantity == 1 else COUNTED[name]
    singular, plural = MEASURED[name]
    return f"{singular if quantity == 1 else plural} of {name}"


def _quantity(quantity: int, following: str, rng: random.Random) -> str:
    if quantity == 1 and rng.random() < 0.6:
        return "an" if following[0] in "aeiou" else "a"
    if quantity in VAGUE_WORDS and rng.random() < 0.3:
        return VAGUE_WORDS[quantity]
    return NUMBER_WORDS[quantity] if rng.random() < 0.65 else str(quantity)


def _other(value: int, rng: random.Random) -> int:
    return rng.choice([number for number in (1, 2, 3, 4, 5) if number != value])


def _item_phrase(item: Item, rng: random.Random, *, corrected: bool = False) -> str:
    """`two large jars of honey`; if corrected, with a slip that the phrase itself puts right."""
    noun = _noun(item.name, item.quantity)
    size = rng.choice(SIZES[item.size]) if item.size else ""
    before, after = (f"{size} {noun}".strip(), "") if rng.random() < 0.75 else (noun, f" ({size})" if size else "")
    if not corrected:
        return f"{_quantity(item.quantity, before, rng)} {before}{after}"
    if item.size and rng.random() < 0.4:
        wrong_size = rng.choice([other for other in SIZES if other != item.size])
        return f"{NUMBER_WORDS[item.quantity]} {wrong_size}, no, {item.size} {noun}"
    wrong, right = _other(item.quantity, rng), NUMBER_WORDS[item.quantity]
    if rng.random() < 0.5:
        return f"{NUMBER_WORDS[wrong]}, {rng.choice(('no', 'sorry', 'no wait'))}, {right} {before}{after}"
    slip = _item_phrase(Item(item.name, wrong, item.size), rng)
    return f"{slip} ({rng.choice(('no, make that', 'sorry, I mean', 'actually'))} {right})"


def _list(phrases: Sequence[str], rng: random.Random) -> str:
    *first, last = phrases
    joiner = rng.choice((" and ", " and ", " plus ", ", and also ", " as well as "))
    return f"{', '.join(first)}{joiner}{last}" if first else last


def _day_phrase(day: str | None, rng: random.Random) -> str:
    """` on Friday`, ` tomorrow`, sometimes with a slip put right; empty for None."""
    if day is None:
        return ""
    if day not in WEEKDAYS:
        return f" {day}" if rng.random() < 0.7 else {"today": " later today", "tomorrow": " tomorrow morning"}[day]
    if rng.random() < 0.08:
        wrong = rng.choice([other for other in WEEKDAYS if other != day]).capitalize()
        form = rng.choice((" on {wrong}, no, {right}", " on {right}, not {wrong}", " on {wrong} - sorry, {right}"))
        return form.format(wrong=wrong, right=day.capitalize())
    return rng.choice(DAY_PHRASES).format(day.capitalize())


def _request(order: Order, rng: random.Random) -> tuple[str, str]:
    """The list of items for the request, and a sentence after it that takes a part back (mostly empty)."""
    kind = rng.choice(("plain",) * 15 + ("slip", "slip", "dropped", "unwanted", "corrected"))
    slip = rng.randrange(len(order.items)) if kind == "slip" else None
    phrases = [_item_phrase(item, rng, corrected=index == slip) for index, item in enumerate(order.items)]
    other = rng.choice([name for name in (*COUNTED, *MEASURED) if name not in {item.name for item in order.items}])
    if kind == "dropped" and len(order.items) < 3:
        quantity = rng.choice((1, 2, 3))
        phrases.insert(rng.randrange(len(phrases) + 1), _item_phrase(Item(other, quantity, None), rng))
        after = rng.choice(("Oh, forget the {}.", "Actually, skip the {}.", "On second thought, no {}."))
        return _list(phrases, rng), after.format(_noun(other, quantity))
    if kind == "unwanted":
        after = rng.choice(("No {} this time.", "I don't need any {}.", "We have enough {} already."))
        return _list(phrases, rng), after.format(COUNTED.get(other, other))
    if kind == "corrected":
        item, wrong = order.items[0], _other(order.items[0].quantity, rng)
        phrases[0] = _item_phrase(Item(item.name, wrong, item.size), rng)
        right = f"{NUMBER_WORDS[item.quantity]} {_noun(item.name, item.quantity)}"
        if len(order.items) == 1 and rng.random() < 0.5:
            return _list(phrases, rng), f"Actually, make that {NUMBER_WORDS[item.quantity]}."
        return _list(phrases, rng), f"Sorry, {right}, not {NUMBER_WORDS[wrong]}."
    return _list(phrases, rng), ""


def _english_sentences(order: Order, rng: random.Random) -> list[str]:
    items, taken_back = _request(order, rng)
    day = _day_phrase(order.day, rng)
    gift = [rng.choice(GIFT_SENTENCES[order.gift])] if order.gift or rng.random() < 0.25 else []
    if rng.random() < 0.3:
        request = rng.choice(REQUESTS_WITH_DELIVERY[order.delivery]).format(items=items, day=day)
        rest = gift
    else:
        request = rng.choice(REQUESTS).format(items=items)
        # An order of which nothing else is said is picked up.
        unsaid = order.delivery == "pickup" and rng.random() < 0.4
        sentences = DAY_SENTENCES if unsaid else DELIVERY_SENTENCES[order.delivery]
        rest = [] if unsaid and not day else [rng.choice(sentences).format(day=day)]
        rest = rest + gift if rng.random() < 0.6 else gift + rest
    # What is taken back follows its request at once, so that "make that three" has one reading.
    body = [request, taken_back] if taken_back else [request]
    if rest and rng.random() < 0.15:
        return [rest[0], *body, *rest[1:]]
    return body + rest


def _telegram(order: Order, rng: random.Random) -> list[str]:
    """`Order: 3 x mug (large), 2 x rice; courier; Fri; gift wrap.`"""
    form = rng.choice(("{n} x {name}{size}", "{n}x {name}{size}", "{name}{size} x{n}", "{name}{size}: {n}"))
    items = [
        form.format(n=item.quantity, name=item.name, size=f" ({item.size})" if item.size else "")
        for item in order.items
    ]
    parts = [rng.choice((", ", " + ")).join(items)]
    if order.delivery != "pickup" or rng.random() < 0.6:
        parts.append(f"{rng.choice(('', 'delivery: '))}{order.delivery}")
    if order.day:
        parts.append(order.day[:3].capitalize() if order.day in WEEKDAYS and rng.random() < 0.5 else order.day)
    if order.gift or rng.random() < 0.25:
        parts.append(rng.choice(("gift wrap", "as a gift") if order.gift else ("no gift wrap", "not a gift")))
    opening = rng.choice(("Order: ", "Please note: ", "My order - ", "Next order: "))
    return [f"{opening}{rng.choice(('. ', '; ', ' / ', ' - ')).join(parts)}."]


def _with_typo(text: str, rng: random.Random) -> str:
    """The text with two neighbouring letters swapped inside one long word, never its first or last."""
    words = [match for match in re.finditer(r"[a-z]{6,}", text) if match.group() not in NUMBER_WORDS.values()]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def english_message(order: Order, rng: random.Random) -> str:
    """The order as a customer might write it."""
    sentences = _telegram(order, rng) if rng.random() < 0.12 else _english_sentences(order, rng)
    sentences = [sentence[0].upper() + sentence[1:] for sentence in sentences]
    if rng.random() < 0.5:
        greeting = rng.choice(GREETINGS)
        if greeting[-1] in ",:" and not re.match(r"I\b", sentences[0]):
            sentences[0] = sentences[0][0].lower() + sentences[0][1:]
        sentences.insert(0, greeting)
    if rng.random() < 0.4:
        sentences.append(rng.choice(CLOSINGS))
    text = " ".join(sentences)
    if rng.random() < 0.12:
        text = _with_typo(text, rng)
    return text.lower() if rng.random() < 0.12 else text


# Writing a Chinese message ---------------------------------------------------------------------------------------


def _item_phrase_zh(item: Item, rng: random.Random, *, corrected: bool = False) -> str:
    """`两盒绿茶`, `大号杯子3个`; if corrected, with a slip that the phrase itself puts right."""
    measure = MEASURES_ZH[item.name]
    number = NUMBER_WORDS_ZH[item.quantity] if rng.random() < 0.7 else str(item.quantity)
    slip = ""
    if corrected:
        wrong = NUMBER_WORDS_ZH[_other(item.quantity, rng)]
        slip = f"{wrong}{measure}{rng.choice(('，不对，', '，哦不，', '，说错了，'))}"
    counted, thing = f"{number}{measure}", item.name
    if item.size and measure in CONTAINERS_ZH:
        counted = f"{number}{item.size}{measure}"
    elif item.size:
        thing = f"{item.size}号{rng.choice(('', '的'))}{item.name}"
    return f"{slip}{counted}{thing}" if rng.random() < 0.6 else f"{thing}{slip}{counted}"


def _day_zh(day: str | None, rng: random.Random) -> str:
    if day is None:
        return ""
    if day[0] != "周":
        return day
    if rng.random() < 0.1:
        wrong = rng.choice([other for other in DAYS_ZH[:7] if other != day])
        return f"{wrong}，不，{day}"
    form = rng.choice((day, day, f"这{day}", f"星期{day[1]}", f"礼拜{day[1]}"))
    return form.replace("日", "天") if form[0] in "星礼" else form


def chinese_message(order: Order, rng: random.Random) -> str:
    """The order as a customer might write it, in Chinese."""
    kind = rng.random()
    slip = rng.randrange(len(order.items)) if kind < 0.12 else None
    phrases = [_item_phrase_zh(item, rng, corrected=index == slip) for index, item in enumerate(order.items)]
    after = []
    if 0.12 <= kind < 0.22 and len(order.items) < 3:
        other = rng.choice([name for name in MEASURES_ZH if name not in {item.name for item in order.items}])
        phrases.append(_item_phrase_zh(Item(other, rng.choice((1, 2, 3)), None), rng))
        after.append(rng.choice(("算了，{}不要了", "哦，{}不用了")).format(other))
    listed = "、".join(phrases[:-1]) + rng.choice(("和", "、", "，还有")) + phrases[-1] if phrases[1:] else phrases[0]
    request = rng.choice(REQUESTS_ZH).format(items=listed)
    day = _day_zh(order.day, rng)
    rest = []
    if order.delivery != "pickup" or rng.random() < 0.65:
        rest.append(rng.choice(DELIVERY_SENTENCES_ZH[order.delivery]).format(day=day))
    elif day:
        rest.append(rng.choice(DAY_SENTENCES_ZH).format(day=day))
    if order.gift or rng.random() < 0.25:
        rest.insert(rng.randrange(len(rest) + 1), rng.choice(GIFT_SENTENCES_ZH[order.gift]))
    greeting = rng.choice(GREETINGS_ZH) if rng.random() < 0.5 else ""
    closing = [rng.choice(CLOSINGS_ZH)] if rng.random() < 0.4 else []
    return greeting + rng.choice(("，", "，", "。", " ")).join([request, *after, *rest, *closing])


# Splits ----------------------------------------------------------------------------------------------------------


def too_similar(first: Grams, second: Grams) -> bool:
    """Whether two sets of 3-grams share so much that one message is a near-duplicate of the other."""
    shared = len(first & second)
    return shared >= NEAR_DUPLICATE * (len(first) + len(second) - shared)


ENGLISH = Language(
    names=(*COUNTED, *MEASURED),
    sizes=tuple(SIZES),
    days=(*WEEKDAYS, "today", "tomorrow"),
    delivery_values={delivery: delivery for delivery in DELIVERIES},
    write=english_message,
    token=r"\w+",
    length=(13, 36),
)
CHINESE = Language(
    names=tuple(MEASURES_ZH),
    sizes=("大", "中", "小"),
    days=DAYS_ZH,
    delivery_values=DELIVERIES_ZH,
    write=chinese_message,
    token=r"\w",
    length=(9, 26),
)
DATASETS = {
    "orders": (ENGLISH, {"test": 72, "validation": 48, "train": 600}),
    "orders_zh": (CHINESE, {"test": 32, "validation": 24, "train": 160}),
}


def make_splits(language: Language, sizes: dict[str, int], seed: int) -> dict[str, list[str]]:
    """The lines of each split: every delivery equally often, and no two messages near-duplicates."""
    rng = random.Random(seed)
    seen: list[Grams] = []
    splits: dict[str, list[str]] = {}
    for split, size in sizes.items():
        rows: list[str] = []
        while len(rows) < size:
            order = draw_order(language, DELIVERIES[len(rows) % len(DELIVERIES)], rng)
            message = language.write(order, rng)
            tokens = re.findall(language.token, message.lower())
            grams = set(zip(tokens, tokens[1:], tokens[2:], strict=False))
            shortest, longest = language.length
            if not shortest <= len(tokens) <= longest or any(too_similar(grams, other) for other in seen):
                continue
            seen.append(grams)
            turns = ({"role": "user", "content": message}, {"role": "assistant", "content": answer(order, language)})
            rows.append(json.dumps({"messages": turns}, ensure_ascii=False))
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def write_datasets(folder: Path, seed: int = SEED) -> None:
    """Writes `orders/` and `orders_zh/` with train.jsonl, validation.jsonl and test.jsonl into the folder."""
    for name, (language, sizes) in DATASETS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in make_splits(language, sizes, seed).items():
            # Bytes, so that no system writes its own line ends.
            (folder / name / f"{split}.jsonl").write_bytes("".join(f"{row}\n" for row in rows).encode())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the demo data of Tunesmith.")
    parser.add_argument("--output", type=Path, default=Path("data"), help="folder to write into (default: data)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"default: {SEED}, which made the committed files")
    arguments = parser.parse_args()
    write_datasets(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
