"""Rules: each a function from Evidence to what it found, its docstring the finding's manual.

A rule is asked once for each door. It says only what the evidence shows; where a fact is
missing it says nothing, or says so by its certainty. ``explain CODE`` prints the docstring, so
it has the same sections everywhere: what it says, why it matters, on the wire, how it is told
from its look-alikes, what to change.

The codes' families: C connection, N negotiation, S server name and routing, T TLS, P protocol, W
what a witness tells.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import NamedTuple

from probe.evidence import Evidence
from probe.finding import MAX_MESSAGE, Certainty, Finding, Fix, Proof, Severity
from probe.wire import printable

FAMILIES = ("connection", "negotiation", "routing", "tls", "protocol", "witness")

SECTIONS = (
    "What it says",
    "Why it matters",
    "On the wire",
    "How it is told from its look-alikes",
    "What to change",
)


class Found(NamedTuple):
    """What a rule saw. The message may quote a peer. ``severity`` None: the rule's own."""

    message: str
    evidence: tuple[Proof, ...]
    certainty: Certainty = Certainty.PROVED
    severity: Severity | None = None
    fix: tuple[Fix, ...] = ()


class Rule(NamedTuple):
    """A rule and what is known of it.

    ``from_documents``: no real component made it fire. ``starttls``: it is about clients that
    begin with SSLRequest, and no error where the client in question gets through without.
    ``unless``: codes of more precise rules, in whose favour it is silent. ``of_variance``: it is
    about answers that vary; what others conclude from a comparison is only possible there.
    """

    code: str
    name: str
    severity: Severity
    find: Callable[[Evidence], Iterator[Found]]
    from_documents: bool = False
    starttls: bool = False
    unless: tuple[str, ...] = ()
    of_variance: bool = False

    @property
    def manual(self) -> str:
        """The docstring, without its indentation."""
        return inspect.cleandoc(self.find.__doc__ or "")

    @property
    def summary(self) -> str:
        """The manual's first line."""
        return self.manual.partition("\n")[0]

    def judge(self, evidence: Evidence) -> Iterator[Finding]:
        """The rule's findings at the evidence's door."""
        if any(next(_RULES[code].find(evidence), None) for code in self.unless):
            return
        for found in self.find(evidence):
            severity, certainty = found.severity or self.severity, found.certainty
            if self.starttls and severity is Severity.ERROR and gets_in_direct(evidence):
                severity = Severity.WARNING
            if self.from_documents and certainty is Certainty.PROVED:
                certainty = Certainty.LIKELY
            compares = len({proof.attempt for proof in found.evidence}) > 1
            if compares and not self.of_variance and evidence.varying:
                certainty = Certainty.POSSIBLE
            if evidence.blind and (compares or severity is Severity.ERROR):
                certainty = Certainty.POSSIBLE
            yield Finding(
                code=self.code,
                name=self.name,
                severity=severity,
                certainty=certainty,
                door=evidence.door,
                message=printable(found.message, MAX_MESSAGE),
                evidence=found.evidence,
                fix=found.fix,
            )


_RULES: dict[str, Rule] = {}

Find = Callable[[Evidence], Iterator[Found]]


def gets_in_direct(evidence: Evidence) -> bool:
    """The client in question speaks direct TLS, and gets through."""
    main = evidence.main
    return evidence.question.direct and main is not None and main.authenticates


def rule(
    code: str,
    name: str,
    severity: Severity,
    *,
    from_documents: bool = False,
    starttls: bool = False,
    unless: tuple[str, ...] = (),
    of_variance: bool = False,
) -> Callable[[Find], Find]:
    """Register a rule under its code and its name."""

    def register(find: Find) -> Find:
        if code in _RULES:
            raise ValueError(f"two rules for {code}")
        facts = from_documents, starttls, unless, of_variance
        _RULES[code] = Rule(code, name, severity, find, *facts)
        return find

    return register


def all_rules() -> tuple[Rule, ...]:
    """Every rule, by code."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
    return tuple(_RULES[code] for code in sorted(_RULES))


def find_rule(code_or_name: str) -> Rule | None:
    """The rule with this code or name, in any case, or None."""
    wanted = code_or_name.lower()
    return next((r for r in all_rules() if wanted in (r.code.lower(), r.name)), None)


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """Every finding at one door, the worst first, then by code."""
    found = [finding for each in all_rules() for finding in each.judge(evidence)]
    return tuple(sorted(found, key=lambda f: (-f.severity.rank, f.code)))
