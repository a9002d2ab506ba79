"""What holds for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tunesmith.config import ModelSection
from tunesmith.errors import ModelError
from tunesmith.models.catalog import resolve_model

# The machine may be busy: a slow example is no failure.
settings.register_profile("tunesmith", deadline=None)
settings.load_profile("tunesmith")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The default model, from the user's cache; fetched on the first run, skipped where that cannot be done."""
    try:
        return resolve_model(ModelSection(name="smollm2-135m"))
    except ModelError as error:
        pytest.skip(f"the model cannot be fetched here: {error.message}")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch: for models so small that a second one only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
