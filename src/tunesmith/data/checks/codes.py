"""Every code that a finding of the check can have, and what it says: for `data.accept`, and for the documents."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from tunesmith.errors import DataError

CODES: Mapping[str, str] = {
    "bad-row": "rows that cannot be read were left out",
    "template-refuses": "rows that the chat template refuses were left out",
    "no-targets": "rows of which nothing would be trained on were left out",
    "too-long-to-answer": "test rows that the model's context cannot hold were left out",
    "answers-cut": "answers lose their end, and the stop token, to max_length",
    "stop-token-missing": "answers do not end with a stop token",
    "few-targets": "less than 5 % of the tokens are trained on",
    "two-bos": "rows begin with two BOS tokens",
    "bos-missing": "the tokenizer puts BOS before a text, the chat template does not",
    "bos-added-twice-elsewhere": "template and tokenizer both add BOS: a tool that does not know it trains two",
    "role-not-rendered": "the chat template renders the content of a role to nothing",
    "prompt-differs-from-training": "the template begins answers otherwise in prompts than in finished conversations",
    "template-with-date": "the chat template writes the date into prompts",
    "plain-template": "the model has no chat template; Tunesmith's plain one is used",
    "length-outside-advice": "nearly all examples are outside the 256 to 1,024 tokens that suit a fine-tune",
    "unused-columns": "the data hold columns that are not read",
    "exact-duplicates": "rows of train are the same",
    "near-duplicates": "rows of train share most of their words",
    "conflicting-answers": "the same prompt has different answers",
    "leakage": "rows of train also stand in validation, test or a benchmark",
    "shared-template": "most texts are made from templates; what these share does not count as overlap",
    "class-imbalance": "a class is far larger than the smallest",
    "source-imbalance": "a file is far larger than the smallest",
    "language-imbalance": "a language is far larger than the smallest",
    "balanced": "rows were left out, repeated or weighed to balance the classes",
    "mojibake": "text decoded with the wrong encoding",
    "invisible-characters": "control, zero-width or direction characters",
    "markup": "left-overs of HTML",
    "repeated-text": "answers that say the same over and over",
    "one-word-answers": "answers of one word where most are long",
    "refusals": "answers that refuse",
    "boilerplate": "phrases of a chat assistant about itself",
    "language-mix": "answers in another language than their prompt, or rows in another than the rest",
    "url-only": "answers of nothing but addresses",
    "broken-json": "answers that are no JSON where nearly all are",
    "special-tokens": "the model's special tokens written in a text",
    "email": "mail addresses",
    "phone": "telephone numbers",
    "card-number": "numbers of bank cards",
    "national-id": "national identity numbers",
    "api-key": "keys and tokens of services",
    "test-not-answerable": "the test set holds no conversation to answer",
    "not-written": "the run folder is another recipe's, so nothing was written there",
    "no-test-set": "the recipe names no test set",
}


def check_accepted(codes: Sequence[str]) -> None:
    """Whether `data.accept` names codes that there are.

    Raises:
        DataError: it names another; the message says which is meant.
    """
    for code in codes:
        if code not in CODES:
            near = difflib.get_close_matches(code, CODES, n=1)
            raise DataError(
                f"no finding has the code '{code}'",
                place="data.accept",
                remedy=f"did you mean '{near[0]}'?" if near else "the codes stand in the report, and in docs/recipe.md",
            )
