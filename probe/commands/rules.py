"""``pgprobe rules``: every finding, a line each."""

from __future__ import annotations

import click

from probe.rules import all_rules


@click.command("rules")
def command() -> None:
    """All findings that pgprobe knows: code, name, default severity, what each says."""
    for rule in all_rules():
        mark = " (from documents)" if rule.from_documents else ""
        click.echo(f"{rule.code} {rule.name:<32} {rule.severity.value:<8} {rule.summary}{mark}")
