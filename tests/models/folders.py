"""What tests do to a model folder."""

import json
from pathlib import Path
from typing import Any

from tests.tiny import tiny_model


def edit_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def sharded(folder: Path) -> Path:
    """Writes the tiny Llama's weights to `folder` in several files with an index."""
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder
