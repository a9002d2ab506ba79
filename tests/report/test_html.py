import re
from html.parser import HTMLParser

from hypothesis import given, settings

from tests.report.examples import HOSTILE, full_report, hostile_report, reports
from tunesmith.report import Report, Sample, Series, Severity
from tunesmith.report.html import render_html
from tunesmith.report.text import HIDDEN, visible

_VOID = {"meta", "link", "br", "hr", "img", "input"}
_ALLOWED = {
    "html", "head", "meta", "title", "link", "style", "body", "header", "main", "nav", "section", "article", "div", "p",
    "h1", "h2", "h3", "h4", "a", "b", "bdi", "code", "span", "ul", "li", "details", "summary", "dl", "dt", "dd", "pre",
    "figure", "figcaption", "svg", "path", "circle", "line", "rect", "text", "desc",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


class _Page(HTMLParser):
    """Reads a page strictly: every tag is closed where it should be; keeps texts, tags, attributes."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        return "".join(text for tag, text in self.texts if tag not in ("style", "title"))


def test_the_page_shows_every_part_in_order() -> None:
    text = _Page(render_html(full_report())).text
    shown = ["evaluate", "Orders: base and tuned", "Failed", "1 error, 1 warning, 1 note", "Error", "bleu is 0.27",
             "test.jsonl:7", "Remedy:", "train for more epochs", "Warning", "3 of 120", "Note", "Trainable parameters",
             "4,884,480", "3.50 % of 139,399,104", "1.873", "GB", "Loss", "validation", "Lengths", "Scores", "0.0312",
             "你好，三箱茶", "empty", "a\n  b"]  # fmt: skip
    places = [text.find(one, start) for start, one in zip([0] * len(shown), shown, strict=True)]
    assert -1 not in places
    positions = [
        text.index(one)
        for one in ("bleu is 0.27", "3 of 120", "BLEU compares", "4,884,480", "Lengths", "Scores", "你好")
    ]
    assert positions == sorted(positions)


def test_a_report_without_errors_passes() -> None:
    text = _Page(render_html(Report("check", "Data"))).text
    assert "Passed" in text
    assert "no findings" in text
    assert "Failed" not in text


def test_the_page_needs_nothing_else() -> None:
    page = render_html(full_report())
    parsed = _Page(page)
    links = [value for name, value in parsed.attributes if name in ("src", "href", "data", "action", "srcset")]
    assert all(link and (link.startswith("#") or link == "data:,") for link in links)
    assert "script" not in parsed.tags
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
    assert "default-src 'none'" in page


def test_links_within_the_page_lead_somewhere_and_ids_are_unique() -> None:
    attributes = _Page(render_html(full_report())).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value for name, value in attributes if name == "href" and value and value.startswith("#")]
    assert len(targets) == 5
    assert all(target.removeprefix("#") in ids for target in targets)


def test_hostile_text_stays_text() -> None:
    page = render_html(hostile_report())
    parsed, calm = _Page(page), _Page(render_html(hostile_report("calm")))
    assert [tag for tag in parsed.tags if (tag, "hidden") != ("span", "hidden")].count("script") == 0
    assert set(parsed.tags) == set(calm.tags)
    without_marks = re.sub(r'<span class="hidden">[^<]*</span>', "", page)
    assert _Page(without_marks).tags == calm.tags
    assert {name for name, _ in parsed.attributes} == {name for name, _ in calm.attributes}
    assert {value for name, value in parsed.attributes if name == "aria-label"} == {"Sections", visible(HOSTILE)}
    assert "<script>alert('x')</script>&amp;\"'[red]" in parsed.text


def test_hidden_characters_are_shown_by_name() -> None:
    page = render_html(hostile_report())
    assert not HIDDEN.search(page)
    for name in ("U+001B", "U+202E", "U+2028", "U+D800"):
        assert f'<span class="hidden">{name}</span>' in page


def test_texts_cannot_turn_their_neighbours_around() -> None:
    report = Report("evaluate", "دقة")
    report.samples.append(Sample("عنوان", (("نص", "مرحبا"),)))
    page = render_html(report)
    for text in ("دقة", "عنوان", "نص"):
        assert f"<bdi>{text}</bdi>" in page
    assert re.search(r'<pre dir="auto"[^>]*>\nمرحبا</pre>', page)


def test_a_leading_newline_of_an_answer_is_kept() -> None:
    report = Report("evaluate", "t")
    report.samples.append(Sample("s", (("tuned", "\n\nanswer"),)))
    assert "\n\n\nanswer</pre>" in render_html(report)  # the first belongs to <pre>


def test_severity_is_said_in_a_word_and_an_icon() -> None:
    page = render_html(full_report())
    for kind in Severity:
        (article,) = re.findall(rf'<article class="finding {kind.value}">.*?</article>', page, re.DOTALL)
        assert f"<span>{kind.value.capitalize()}</span>" in article
        assert '<svg class="icon"' in article


def test_tables_align_numbers_and_scroll_in_their_own_box() -> None:
    page = render_html(full_report())
    assert '<td class="number"><bdi>0.0312</bdi></td>' in page
    assert re.search(r'<th scope="row"[^>]*><bdi>BLEU</bdi></th>', page)
    assert re.search(r'<div class="scroll" role="region" aria-label="Scores" tabindex="0"><table>', page)


def test_the_style_knows_dark_screens_small_screens_and_paper() -> None:
    page = render_html(full_report())
    for condition in ("prefers-color-scheme: dark", "max-width: 600px", "@media print"):
        assert condition in page


def test_every_class_has_a_style() -> None:
    report = full_report()
    report.series += [Series("Many", str(i), (1.0,), (1.0,)) for i in range(10)] + [Series("None", "n", (), ())]
    report.add_finding(Severity.NOTE, "c", HOSTILE)
    report.add_figure("long", "Long", "a text that is long enough for two columns", "unit", "detail")
    page = render_html(report)
    style, body = page.split("</style>")
    classes = {name for value in re.findall(r'class="([^"]*)"', body) for name in value.split()}
    unstyled = {name for name in classes if not re.search(rf"\.{name}\b", style)}
    assert unstyled <= {"sample", "line"}


def test_a_megabyte_of_series_makes_a_small_page() -> None:
    report = Report("train", "Run")
    steps = tuple(float(step) for step in range(50_000))
    report.series.append(Series("Loss", "train", steps, steps))
    assert len(render_html(report)) < 60_000


def test_the_same_report_gives_the_same_page() -> None:
    assert render_html(full_report()) == render_html(full_report())


@settings(deadline=None)
@given(report=reports)
def test_any_report_gives_a_well_formed_page(report: Report) -> None:
    page = render_html(report)
    assert set(_Page(page).tags) <= _ALLOWED
    assert not HIDDEN.search(page)
    page.encode("utf-8")


def test_evidence_says_how_much_of_all_it_is() -> None:
    report = Report("check", "Data")
    report.add_finding(Severity.NOTE, "some", "52 rows", evidence=("a", "b", "c"), count=52)
    report.add_finding(Severity.NOTE, "all", "1 row", evidence=("a",), count=1)
    page = render_html(report)
    assert "Evidence (3 of 52)" in page
    assert "Evidence (1)" in page
