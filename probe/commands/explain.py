"""``pgprobe explain CODE``: a finding's manual, which is its rule's docstring."""

from __future__ import annotations

import click

from probe.commands import deliver
from probe.rules import find_rule


@click.command("explain")
@click.argument("code")
def command(code: str) -> None:
    """The manual of a finding, by its CODE (N201) or name (sni-router-without-starttls)."""
    rule = find_rule(code)
    if rule is None:
        raise click.UsageError(f"no finding is called {code[:60]!r}; pgprobe rules lists them all")
    untried = "From documents: no real component has made it fire here yet.\n"
    deliver(
        (
            f"{rule.code} {rule.name} ({rule.severity.value} unless said otherwise)\n",
            untried if rule.from_documents else "",
            f"\n{rule.manual}\n",
        )
    )
