"""The recipe's `data` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.config.section import Section


class HubDataset(Section):
    """A dataset of the hub, read with the `datasets` package.

    Args:
        path: its id, as "openai/gsm8k".
        name: its configuration, as "main".
        split: its split; by default the one it is listed under: train, validation or test.
        revision: branch, tag or commit.
    """

    path: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")
    name: str | None = None
    split: str | None = None
    revision: str | None = None


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


Sources = Annotated[list[str | HubDataset], BeforeValidator(_as_list), Field(min_length=1)]
"""One file or hub dataset, or a list of them."""


class ColumnMapping(Section):
    """Which columns hold what, for rows of no usual shape.

    Give `messages` (a list of turns; `role` and `content` name the keys within a turn), or `prompt` and
    `completion` with an optional `system`, or `text`.
    """

    messages: str | None = None
    role: str = "role"
    content: str = "content"
    system: str | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> ColumnMapping:
        pair = (self.prompt is not None, self.completion is not None)
        if pair[0] != pair[1]:
            raise ValueError("prompt and completion go together")
        if (self.messages is not None) + pair[0] + (self.text is not None) != 1:
            raise ValueError("name exactly one of: messages; prompt and completion; text")
        return self


DataFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "text", "mapping"
]


def on_or_off(value: object) -> object:
    """YAML 1.1 reads on and off as truth values."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


RuleMode = Annotated[Literal["on", "off", "fix"], BeforeValidator(on_or_off)]
"""What a rule of the check does: report, nothing, or act as well."""


class DataRules(Section):
    """The rules of the check. Each is on (report), off, or fix (report and act).

    What `fix` does is said with each: it mends the text, in every split, or leaves the row out, of train only.
    Every change and every row left out stands in `data/dropped.jsonl`.

    Args:
        exact_duplicates: rows of train equal in all but case, width and white space; fix keeps one of them.
        near_duplicates: rows of train that share most of their words; fix keeps one of each cluster.
        conflicting_answers: the same prompt with different answers in train; fix leaves all of them out.
        leakage: rows of train that also stand in validation, test or a benchmark; fix leaves them out of train.
        mojibake: text decoded with the wrong encoding; fix decodes it anew.
        invisible_characters: control, zero-width and direction characters; fix removes them.
        markup: left-overs of HTML; fix removes tags and resolves entities.
        repeated_text: an answer that says the same over and over; fix leaves the row out.
        one_word_answers: answers of one word where most are long; fix leaves the row out.
        refusals: answers that refuse; fix leaves the row out.
        boilerplate: phrases of a chat assistant about itself; fix leaves the row out.
        language_mix: an answer in another language than its prompt, or a row in another than the rest; fix leaves it
            out.
        url_only: an answer of nothing but addresses; fix leaves the row out.
        broken_json: an answer that is no JSON where nearly all are; fix leaves the row out.
        special_tokens: the model's special tokens written in a text; fix removes them.
        email: mail addresses; fix puts [EMAIL] in their place.
        phone: telephone numbers; fix puts [PHONE] in their place.
        card_number: numbers of bank cards, by their checksum; fix puts [CARD] in their place.
        national_id: national identity numbers, by their checksum; fix puts [ID] in their place.
        api_key: keys and tokens of services; fix puts [KEY] in their place.
    """

    exact_duplicates: RuleMode = "fix"
    near_duplicates: RuleMode = "on"
    conflicting_answers: RuleMode = "on"
    leakage: RuleMode = "fix"
    mojibake: RuleMode = "on"
    invisible_characters: RuleMode = "on"
    markup: RuleMode = "on"
    repeated_text: RuleMode = "on"
    one_word_answers: RuleMode = "on"
    refusals: RuleMode = "on"
    boilerplate: RuleMode = "on"
    language_mix: RuleMode = "on"
    url_only: RuleMode = "on"
    broken_json: RuleMode = "on"
    special_tokens: RuleMode = "on"
    email: RuleMode = "on"
    phone: RuleMode = "on"
    card_number: RuleMode = "on"
    national_id: RuleMode = "on"
    api_key: RuleMode = "on"


class DataSection(Section):
    """Where the examples are and how a row is read.

    Args:
        train: file(s) or hub dataset(s) to train on.
        validation: watched while training; the best checkpoint is the one with the lowest loss here.
        test: answered and scored by `evaluate`.
        benchmarks: further sets whose rows must not be trained on; nothing else is done with them.
        format: the shape of a row; auto detects it.
        mapping: columns of rows of no usual shape.
        system: a system message for every conversation that has none.
        on_bad_row: error ends with a list of the bad rows once a split is read; skip drops and reports them.
        max_length: longest example in tokens; auto takes it from the data. What is cut is reported.
        rules: what the check looks for, and what it does about it.
        accept: codes of findings that are known and meant: an error named here stops nothing.
        class_field: the column that holds a row's class; by default short repeated answers are the classes, if there
            are such.
        balance: what to do where a class is more than `max_class_ratio` times as large as the smallest: none, leave
            rows of it out (downsample), repeat rows of the small ones (upsample), or weigh its tokens less (weight).
        max_class_ratio: how many times as large as the smallest class the largest may be.
        num_proc: processes of the check; auto takes one for each core, and none for small sets.
    """

    train: Sources
    validation: Sources | None = None
    test: Sources | None = None
    benchmarks: Sources | None = None
    format: DataFormat = "auto"
    mapping: ColumnMapping | None = None
    system: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    max_length: Literal["auto"] | Annotated[int, Field(ge=8)] = "auto"
    rules: DataRules = Field(default_factory=DataRules)
    accept: list[str] = Field(default_factory=list)
    class_field: str | None = None
    balance: Literal["none", "downsample", "upsample", "weight"] = "none"
    max_class_ratio: float = Field(3.0, ge=1)
    num_proc: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"

    @model_validator(mode="after")
    def _mapping_has_its_format(self) -> DataSection:
        if self.mapping is not None and self.format not in ("auto", "mapping"):
            raise ValueError(f"format: {self.format} and mapping exclude each other; leave format out")
        if self.mapping is None and self.format == "mapping":
            raise ValueError("format: mapping needs a mapping that names the columns")
        return self
