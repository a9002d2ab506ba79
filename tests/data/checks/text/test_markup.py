import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.text.markup import MARKUP
from tunesmith.data.records import Example, Message, Place

PLACE = Place("train.jsonl", 1)


def row(text: str, prompt: str = "Tell me something.") -> Example:
    return Example((Message("user", prompt), Message("assistant", text)), PLACE)


def mended(text: str, prompt: str = "Tell me something.") -> str:
    assert MARKUP.mend is not None
    return MARKUP.mend(row(text, prompt)).messages[1].content


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One<br>two<br/>\nthree<BR />four", "One\ntwo\nthree\nfour"),
        ("One.<br> Two.", "One.\nTwo."),
        ("<p>One.</p>\n\n<p>Two.</p><p>Three.</p>", "One.\n\nTwo.\nThree."),
        ("<div class='x'>One</div>", "One"),
        ("A <b>bold</b> and <strong>strong</strong> <i>word</i>", "A bold and strong word"),
        ('A <span style="color: red">red</span> <font color=red>word</font>', "A red word"),
        ('See <a href="https://example.com/?a=1&b=2" target=_blank>this</a>.', "See this."),
        ("Mine:<ul><li>one</li><li>two</li></ul>", "Mine:\n- one\n- two"),
        ("<h2>Title</h2>Text", "Title\nText"),
        ("<table><tr><td>1</td><td>2</td></tr></table>", "1 2"),
        ("10<sup>6</sup>, 1<sup>st</sup>, e<sup>x+1</sup>, H<sub>2</sub>O", "10⁶, 1st, e^(x+1), H2O"),
        ("fish&nbsp;&amp;&nbsp;chips, it&#39;s &quot;good&quot;&hellip;", 'fish & chips, it\'s "good"…'),
        ("a &lt; b, b &gt; c, caf&eacute; &#x27;x&#x27; &copy; 2020", "a < b, b > c, café 'x' © 2020"),
        ("escaped &amp;amp; twice&amp;nbsp;here", "escaped & twice here"),
        ("an end</div>", "an end"),
    ],
)
def test_left_overs_are_found_and_rendered(text: str, expected: str) -> None:
    assert MARKUP.find(row(text)) is not None
    assert mended(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "if a<b and c>d, then x<y",
        "List<String>, Map<K, V>, vector<int>, Vec<P>, Option<B>",
        "Dear <name>, press <Enter> or <DEL>.",
        "<think>Let me see.</think> Yes. <|im_end|> </s> <analogy>",
        "AT&T; R&D; p = &value; q = &sum;",
        "Use `<b>` and `&amp;` so: ```\n<p>text</p>\n```",
        "| a | b |\n|---|---|\n| one<br>two | 3 |",
        "<table>\n1,2\n3,4\n</table>",
        "5 <<2+3=5>>5 and #include <stdio.h>",
        "a vector <i, j> and <b>",
    ],
)
def test_what_only_looks_like_markup_is_left_alone(text: str) -> None:
    assert MARKUP.find(row(text)) is None
    assert mended(text) == text


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Write the HTML of a list.", "<ul><li>one</li></ul>"),
        ("写一个网页", "<div>你好</div>"),
        ("Which tag makes text bold?", "It is <b>bold</b>."),
        ("Make a page.", "<!DOCTYPE html><html><body><p>Hi</p></body></html>"),
        ("Make a card.", '<div class="a"><p class="b">x</p><span class="c">y</span></div>'),
        ("Make a component.", "return <div onClick={() => setOpen(true)}><p className='x'>Hi</p></div>"),
        ("What makes it bold?", "Put it between &lt;b&gt; and &lt;/b&gt;."),
    ],
)
def test_rows_about_markup_are_left_alone(prompt: str, text: str) -> None:
    assert MARKUP.find(row(text, prompt)) is None
    assert mended(text, prompt) == text


def test_prompts_are_looked_at_too_and_an_address_is_no_talk_of_html() -> None:
    assert MARKUP.find(row("Fine.", prompt="See https://example.com/a.html<br>and say.")) is not None


@pytest.mark.parametrize(
    "prompt", ["把罐子贴上标签。", "给评论打标签：好或坏", "The price tag came off.", "He may tag along."]
)
def test_labels_and_price_tags_are_no_talk_of_html(prompt: str) -> None:
    assert MARKUP.find(row("One<br/>two", prompt)) is not None


@pytest.mark.parametrize("prompt", ["<br>标签有什么用？", "b 标签有什么用？", "结束标签写在哪里？"])
def test_tags_in_chinese_are_talk_of_html(prompt: str) -> None:
    assert MARKUP.find(row("One<br/>two", prompt)) is None


def test_code_beside_left_overs_is_not_changed() -> None:
    assert mended("Use&nbsp;`a &amp; b`:\n```\nx &lt; y\n```\n<b>Done</b>") == (
        "Use `a &amp; b`:\n```\nx &lt; y\n```\nDone"
    )


TAGS = ("<br>", "<p>", "</p>", "<b>", "</b>", "<B>", "<P>", "<li>", "</li>", "<td>", "<table>", "<a href='x'>", "</a>")
OTHERS = ("<sup>2</sup>", "<sup>", "&amp;", "&lt;", "&gt;", "&nbsp;", "&#60;", "&#96;", "&#0;", "amp;", "lt;", "```")
PIECES = st.sampled_from((*TAGS, *OTHERS, *"b/`| \nx中<>&"))


@given(st.lists(PIECES, max_size=14).map("".join))
def test_mended_text_has_no_left_overs(text: str) -> None:
    once = mended(text)
    assert MARKUP.find(row(once)) is None
    assert mended(once) == once


@given(st.text(st.characters(exclude_characters="&", codec="utf-8")))
def test_text_without_tags_and_entities_is_left_alone(text: str) -> None:
    plain = text.replace("<", "< ")
    assert mended(plain) == plain
