"""Fails when a source file is longer than 500 lines, a function longer than a screen, or a tracked file than 2 MiB.

Usage: python scripts/check_file_size.py
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_LINES = 500
MOST_FUNCTION_LINES = 70
MOST_BYTES = 2 * 1024 * 1024


def problems(path: Path) -> Iterator[str]:
    """What is too large about one file."""
    if path.stat().st_size > MOST_BYTES:
        yield f"{path}: {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}"
    if path.suffix != ".py":
        return
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > MOST_LINES:
        yield f"{path}: {lines} lines, more than {MOST_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, more than {MOST_FUNCTION_LINES}"


def main() -> int:
    """Checks what git tracks, or would track; returns the exit code."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    found = [p for name in sorted(set(names)) if name and Path(name).is_file() for p in problems(Path(name))]
    print("\n".join(found) or f"{len(names) - 1} files are within the limits")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
