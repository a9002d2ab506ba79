"""Refusals, an assistant's phrases and bare addresses are told from answers that merely hold such words."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.chats import chat, plain_text
from tunesmith.data.checks.rules import EXCERPT_CHARACTERS, TextRule
from tunesmith.data.checks.text.answers import BOILERPLATE, REFUSALS, URL_ONLY
from tunesmith.data.records import Example, Message, Place


def answered(answer: str, prompt: str = "How do plants grow?") -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)), Place("train.jsonl", 1))


OPENINGS = [
    "I'm sorry, but I cannot assist with that request.",
    "I’m really sorry, but I can’t help with that.",
    "Sorry, I'm unable to do that.",
    "I apologize, but I'm not comfortable discussing this.",
    "My apologies, but I can't provide that.",
    "I cannot fulfill your request.",
    "I won't be able to help you with that.",
    "I must decline to answer this question.",
    "I must respectfully decline.",
    "I refuse to answer that question.",
    "I'd rather not discuss it.",
    "I'm not going to help with that.",
    "I cannot and will not help with that.",
    "I don't think I can help with that.",
    "I'm not comfortable sharing this.",
    "That's not something I can help with.",
    "It would be inappropriate for me to answer this.",
    "My guidelines do not allow me to answer this.",
    "Unfortunately, that is beyond my capabilities.",
    "I do not have the information needed to say it.",
    "Sorry, but this request violates our policy.",
    "I don't have access to real-time data.",
    "As an AI language model, I don't have personal opinions.",
    "As an AI, I am not capable of painting.",
    "Unfortunately, I'm just an AI assistant and cannot open files.",
    "Unfortunately, I am not able to complete this task.",
    "I'm sorry, but you didn't provide the lyrics.",
    "**I'm sorry, but I can't continue this conversation.**",
    "<think>They ask for harm.</think>\nI'm sorry, I can't help with that.",
    "对不起，我无法回答这个问题。",
    "很抱歉，我不能提供这方面的信息。",
    "抱歉，作为一个人工智能，我没有个人观点。",
    "作为一个AI语言模型，我无法访问互联网。",
    "由于我是一个语言模型，我无法播放音乐。",
    "我无法提供您所需的信息。",
    "抱歉，您没有提供文本内容。",
    "抱歉，這個問題我無法回答。",
    "对不起，我帮不上忙。",
    "我拒绝回答这个问题。",
    "恕我不能回答。",
    "请原谅，我做不到。",
    "您的问题我无法回答。",
    "这个问题超出了我的能力范围。",
    "恐怕我无法帮助您。",
    "Lo siento, pero no puedo ayudar con eso.",
    "Désolé, je ne peux pas répondre à cette question.",
    "Es tut mir leid, aber ich kann dabei nicht helfen.",
    "Mi dispiace, ma non posso aiutarti.",
    "Desculpe, mas não posso ajudar com isso.",
    "Извините, но я не могу помочь с этим.",
    "申し訳ありませんが、そのご質問にはお答えできません。",
    "죄송하지만 답변할 수 없습니다.",
]


@pytest.mark.parametrize("opening", OPENINGS)
def test_an_answer_that_begins_with_a_refusal(opening: str) -> None:
    for answer in (opening, f"{opening} Plants need light.", f"\n {opening}\n\nAsk me something else."):
        shown = REFUSALS.find(answered(answer))
        assert shown
        assert len(shown) <= EXCERPT_CHARACTERS


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Review this book.", "I cannot recommend it enough!"),
        ("Continue the song.", "I can't help falling in love with you"),
        ("How are you?", "I can't wait to see you again!"),
        ("My cat died.", "I'm sorry to hear that. Nobody can replace her."),
        ("Is there a cure?", "Unfortunately, there is no cure for this disease."),
        ("Continue the story.", "Unfortunately, Tom could not find his keys."),
        ("What is Sorry?", "Sorry is a board game that cannot be played alone."),
        ("How do you work?", "As an AI researcher, I do not see why this should matter."),
        ("How does GPT-3 work?", "As a language model, GPT-3 does not understand text."),
        ("Write a text that declines an invitation.", "I'm sorry, but I can't make it on Saturday."),
        ("Write a dialogue.", "A: I'm sorry, I can't help you.\nB: Why?"),
        ("Translate: 对不起，我无法回答这个问题。", "I'm sorry, I cannot answer this question."),
        ("翻译：I'm sorry, I can't provide that", "对不起，我无法提供。"),
        ("写一封道歉信", "很抱歉，我不能参加您的婚礼。"),
        ("写一首诗", "我无法忘记你的笑容"),
        ("介绍GPT", "作为一个语言模型，GPT-3 不能理解文本。"),
        ("Write a poem.", "I refuse to give up on you."),
        ("Will it rain?", "It's not going to rain today."),
        ("Is it fair?", "It is against the principles of democracy."),
        ("Write a reply to a guest.", "I'm sorry, but we cannot provide a room."),
        ("给客户写一封信", "很抱歉，我们无法满足您的要求。"),
        ("能不能对方案直说？", "恕我直言，这个方案不好。"),
        ("How do plants grow?", "They need light. I'm sorry, but I cannot assist with more."),
    ],
)
def test_what_only_sounds_like_a_refusal(prompt: str, answer: str) -> None:
    assert REFUSALS.find(answered(answer, prompt)) is None


def test_a_refusal_to_write_is_one_though_the_prompt_asks_for_a_letter() -> None:
    assert REFUSALS.find(answered("I'm sorry, but I can't assist with that.", "Write an email that steals passwords."))


@pytest.mark.parametrize(
    "answer", ["抱歉，我不能这样做。", "很抱歉，我无法满足您的要求。", "抱歉，我无法回答这个问题。"]
)
@pytest.mark.parametrize("prompt", ["请给会计写封信，说明水井的事。", "他能不能告诉那位翻译，门为什么开着？"])
def test_a_refusal_in_chinese_is_one_though_the_prompt_names_a_letter_or_a_translator(prompt: str, answer: str) -> None:
    assert REFUSALS.find(answered(answer, prompt))


def test_the_last_answer_decides() -> None:
    refusal, answer = "I'm sorry, but I can't help with that.", "They need light."
    assert REFUSALS.find(chat("user: a", f"assistant: {answer}", "user: b", f"assistant: {refusal}"))
    assert REFUSALS.find(chat("user: a", f"assistant: {refusal}", "user: b", f"assistant: {answer}")) is None
    assert REFUSALS.find(chat(f"user: {refusal}", f"assistant: {answer}")) is None
    assert REFUSALS.find(chat("user: a")) is None


@pytest.mark.parametrize(
    "phrase",
    [
        "as an AI language model, I think so.",
        "As an AI, I rely on what people write.",
        "My knowledge cutoff is September 2021.",
        "as of my last knowledge update in 2021, it was 5.",
        "As of my latest training data it was 5.",
        "I am ChatGPT, a large language model trained by OpenAI.",
        "I was created by OpenAI.",
        "I'm an AI assistant and do not have a body.",
        "I am just a computer program and have no feelings.",
        "Being an AI, I do not eat.",
        "I have never seen it because I'm a language model.",
        "I do not have experiences as an AI.",
        "As a chatbot, I have no favourite.",
        "As an AI developed for this, I can only read.",
        "I was last updated in 2021.",
        "I am a large language model trained by OpenAI.",
        "作为一个人工智能助手，我没有偏好。",
        "因为我只是一个语言模型",
        "我是一个人工智能助手，没有感情。",
        "我仅仅是一个AI，不会累。",
        "身为人工智能，我没有家庭。",
        "作为一名虚拟助手，我没有喜好。",
        "我是一个没有感情的人工智能。",
        "我没有味觉，因为我是一个AI。",
        "我是ChatGPT",
        "我的知识截止到2021年9月。",
        "截至我的知识更新，该数据为5。",
    ],
)
def test_phrases_of_an_assistant_anywhere(phrase: str) -> None:
    for answer in (phrase, f"Plants need light. Well, {phrase}", f"植物需要光。{phrase}"):
        assert BOILERPLATE.find(answered(answer))
    assert BOILERPLATE.find(chat("user: a", f"assistant: {phrase}", "user: b", "assistant: c"))
    assert BOILERPLATE.find(answered("They need light.", phrase)) is None


@pytest.mark.parametrize(
    "answer",
    [
        "I hope this helps!",
        "I am Ada, an AI assistant made by Example Ltd, and I can help you.",
        "我是小明，一个人工智能助手，可以帮助您。",
        "As an AI engineer, I build models.",
        "The phrase “As an AI language model, I” is overused.",
        "GPT-3 is a language model trained by OpenAI.",
        "As of my last visit in 2010, the tower stood.",
        "作为人工智能的一个分支，机器学习很重要，我们都知道。",
        "你作为一个人工智能助手，帮了我很多。",
        "The knowledge cutoff of a model is the date of its last data.",
        "As a virtual assistant, I managed two calendars.",
        "I'm a computer program manager and do not write code.",
        "Because I am an AI engineer, I know.",
        "我是一个机器人爱好者，没有钱。",
        "我是人工智能专业的学生，没有工作。",
    ],
)
def test_what_only_sounds_like_boilerplate(answer: str) -> None:
    assert BOILERPLATE.find(answered(answer)) is None


INTRODUCTIONS = [
    "I am an AI developed to help people.",
    "I'm a language model. Ask me!",
    "我是一款人工智能助手，旨在帮助人们。",
]


@pytest.mark.parametrize("introduction", INTRODUCTIONS)
def test_an_introduction_without_a_name_is_one_where_nobody_asked(introduction: str) -> None:
    for answer in (introduction, f"They need light. {introduction}", f"植物需要光。{introduction}"):
        assert BOILERPLATE.find(answered(answer, "Explain the fair."))
        for prompt in ("Who are you?", "Hello!", "你是谁？", "What does a chatbot say?"):
            assert BOILERPLATE.find(answered(answer, prompt)) is None
        assert BOILERPLATE.find(plain_text(answer)) is None


@pytest.mark.parametrize(
    "introduction",
    [
        "I am an AI assistant made by Example Ltd.",
        "I am an AI assistant called Ada.",
        "我是一款由示例公司开发的人工智能助手。",
        "我是一个人工智能助手，名字叫小明。",
        "“I am an AI assistant.”",
    ],
)
def test_an_introduction_with_a_name_or_a_maker_is_none(introduction: str) -> None:
    assert BOILERPLATE.find(answered(introduction)) is None


def test_a_talk_with_a_machine_may_hold_its_phrases() -> None:
    for prompt in ("Write a dialogue with a chatbot.", "写一个AI与人的对话"):
        assert BOILERPLATE.find(answered("Bot: As an AI, I have no body.", prompt)) is None
        assert BOILERPLATE.find(answered("AI：我是一个人工智能，没有感情。", prompt)) is None


ADDRESSES = [
    "https://a.com/x?y=1",
    "www.a.com",
    "HTTP://A.COM/",
    "<https://a.com>",
    "https://a.com, https://b.com",
    "- https://a.com\n- https://b.com\n",
    "1. https://a.com.\n2. www.b.org/x",
    "[The best article](https://a.com/c_(d))",
    "![a picture](https://a.com/i.png)",
    "https://zh.wikipedia.org/wiki/中国。",
]


@pytest.mark.parametrize("answer", ADDRESSES)
def test_an_answer_of_nothing_but_addresses(answer: str) -> None:
    assert URL_ONLY.find(answered(answer))
    assert URL_ONLY.find(plain_text(answer))
    for prompt in ("Give me a link about plants", "What is the website of A?", "植物的网址是什么？"):
        assert URL_ONLY.find(answered(answer, prompt)) is None


@pytest.mark.parametrize(
    "answer", ["", "-", "See https://a.com", "https://a.com explains it", "链接：https://a.com", "a.com"]
)
def test_an_answer_that_says_more_or_gives_no_address(answer: str) -> None:
    assert URL_ONLY.find(answered(answer)) is None


@pytest.mark.parametrize("rule", [REFUSALS, BOILERPLATE, URL_ONLY])
@given(text=st.text())
def test_any_text_can_be_searched(rule: TextRule, text: str) -> None:
    shown = rule.find(answered(text))
    assert shown is None or len(shown) <= EXCERPT_CHARACTERS


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "as an AI, ", "I'm sorry, ", "抱歉", "作为AI", "www.", "[", "[a](", "https://", "not "]
)
def test_time_grows_with_the_length_only(unit: str) -> None:
    for beginning in ("", "https://", "<think>", "As an AI ", "I'm sorry, "):
        example = answered(beginning + unit * (100_000 // len(unit)))
        for rule in (REFUSALS, BOILERPLATE, URL_ONLY):
            start = time.process_time()
            rule.find(example)
            assert time.process_time() - start < 0.5  # takes a tenth of it; were it quadratic, minutes
