"""The command-line reference in docs/ is what the commands say."""

from __future__ import annotations

from pathlib import Path

import pytest
from ebseg_deploy.cli import VERBS, reference

DOCS = Path(reference.__file__).parents[1] / "docs"


@pytest.mark.skipif(not DOCS.is_dir(), reason="the documents come with the repository, not with the wheel")
def test_reference_is_current() -> None:
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert written == reference.reference(), "run: python -m ebseg_deploy.cli.reference > docs/cli.md"


def test_reference_has_every_verb_and_depends_on_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = reference.reference()
    for verb in (*VERBS, "vocab build", "bench latency"):
        assert f"\n## ebseg {verb}\n" in text
    monkeypatch.setenv("COLUMNS", "40")
    assert reference.reference() == text
