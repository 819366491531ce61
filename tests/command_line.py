"""The command line in this process, and what a refusal looks like."""

from __future__ import annotations

from click.testing import CliRunner, Result
from ebseg_deploy.cli import ebseg


def run(*words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(ebseg, [str(word) for word in words], input=stdin)


def assert_refused(outcome: Result, *needles: object) -> None:
    """One line on stderr that holds `needles` and, after a semicolon, what to do."""
    assert outcome.exit_code == 1, outcome.output
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert "unexpected" not in outcome.stderr
    assert "; " in outcome.stderr, "no cure"
    for needle in needles:
        assert str(needle) in outcome.stderr
