"""The ground truth of the check: clean rows, a known number of every fault planted in them, and the comparison.

planted = CORPORA["english"].plant(10)
paths = planted.write(folder)
tunesmith.check(load_recipe(recipe_for(paths, model)), run)
result = score(planted, read_records(run))
"""

from tests.planted.clean import Pair, chinese, classification, english, json_task, take
from tests.planted.corpora import CORPORA, MAX_LENGTH, Corpus, recipe_for
from tests.planted.faults import (
    ANY_ROW,
    JSON,
    LINES,
    PAIRS,
    PROSE,
    Fault,
    Kind,
    Planted,
    as_alpaca,
    as_messages,
    as_question_answer,
    plant,
)
from tests.planted.score import Score, named_rows, read_records, score
from tests.planted.texts import Setting

__all__ = [
    "ANY_ROW",
    "CORPORA",
    "JSON",
    "LINES",
    "MAX_LENGTH",
    "PAIRS",
    "PROSE",
    "Corpus",
    "Fault",
    "Kind",
    "Pair",
    "Planted",
    "Score",
    "Setting",
    "as_alpaca",
    "as_messages",
    "as_question_answer",
    "chinese",
    "classification",
    "english",
    "json_task",
    "named_rows",
    "plant",
    "read_records",
    "recipe_for",
    "score",
    "take",
]
