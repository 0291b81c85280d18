"""What a rule says: which finding, how bad, how sure, from what evidence, what to change."""

from enum import StrEnum
from typing import NamedTuple

MAX_MESSAGE, MAX_SAYS = 1_200, 400  # characters


class Severity(StrEnum):
    """How bad. ``error``: clients of the default kind do not get in, or to the wrong place."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """A number to compare by."""
        return list(Severity).index(self)


class Certainty(StrEnum):
    """How sure. ``proved``: nothing else known gives these answers together."""

    POSSIBLE = "possible"
    LIKELY = "likely"
    PROVED = "proved"


class Proof(NamedTuple):
    """One thing that was seen: at which door, in which attempt, at which step.

    What it says is safe to show, as a finding's message is: whoever makes one sees to that.
    """

    door: str
    attempt: str
    step: str | None
    says: str


class Fix(NamedTuple):
    """What to change, and who can."""

    who: str
    change: str


class Finding(NamedTuple):
    """A rule that fired."""

    code: str
    name: str
    severity: Severity
    certainty: Certainty
    door: str
    message: str
    evidence: tuple[Proof, ...] = ()
    fix: tuple[Fix, ...] = ()
