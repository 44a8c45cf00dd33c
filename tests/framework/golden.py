"""Golden output: compared, or written anew with ``pytest --regenerate``."""

from __future__ import annotations

from pathlib import Path


def check_golden(path: Path, text: str, regenerate: bool) -> None:
    """Compare ``text`` with the file ``path``; ``regenerate`` writes it instead."""
    if regenerate:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no golden file {path}: run pytest --regenerate"
    assert text == path.read_text(encoding="utf-8")
