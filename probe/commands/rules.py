"""``pgprobe rules``: every finding, a line each."""

from __future__ import annotations

import click

from probe.commands import deliver
from probe.rules import Rule, all_rules


@click.command("rules")
def command() -> None:
    """All findings that pgprobe knows: code, name, default severity, what each says."""
    deliver(map(_line, all_rules()))


def _line(rule: Rule) -> str:
    mark = " (from documents)" if rule.from_documents else ""
    return f"{rule.code} {rule.name:<32} {rule.severity.value:<8} {rule.summary}{mark}\n"
