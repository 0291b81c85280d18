"""A certificate as DER, and what it says, read on first use."""

from __future__ import annotations

import hashlib
from datetime import datetime
from functools import cached_property

from probe.wire import Malformed, printable
from probe.wire.x509 import X509, parse_x509


class Certificate:
    """One certificate. What cannot be read is empty: a broken certificate is an answer too."""

    def __init__(self, der: bytes) -> None:
        self.der = der

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, in lower-case hex."""
        return hashlib.sha256(self.der).hexdigest()

    @cached_property
    def _parsed(self) -> X509 | None:
        try:
            return parse_x509(self.der)
        except Malformed:
            return None

    @property
    def readable(self) -> bool:
        """Whether the DER is a certificate at all."""
        return self._parsed is not None

    @property
    def subject(self) -> str:
        """The subject as RFC 4514 writes it, safe to show."""
        return printable(self._parsed.subject) if self._parsed else ""

    @property
    def issuer(self) -> str:
        """The issuer as RFC 4514 writes it, safe to show."""
        return printable(self._parsed.issuer) if self._parsed else ""

    @property
    def names(self) -> tuple[str, ...]:
        """The DNS names and addresses that it is for; the common name where it lists none."""
        if self._parsed is None:
            return ()
        listed = self._parsed.alternative_names or self._parsed.common_names
        return tuple(printable(name, 255) for name in listed)

    @property
    def validity(self) -> tuple[datetime, datetime] | None:
        """Not before, not after; both in UTC."""
        return (self._parsed.not_before, self._parsed.not_after) if self._parsed else None

    @property
    def binding_hash(self) -> str | None:
        """The hash that ``tls-server-end-point`` (RFC 5929, section 4.1) uses, or None.

        Ed25519 and Ed448 signatures name no hash: PostgreSQL cannot compute the binding then
        (measured: ``could not find digest for NID UNDEF``).
        """
        named = self._parsed.signature_hash if self._parsed else None
        return "sha256" if named in ("md5", "sha1") else named

    @property
    def binding_data(self) -> bytes | None:
        """The channel binding data of ``tls-server-end-point``, or None where there is none."""
        if not self.readable or self.binding_hash is None:
            return None
        return hashlib.new(self.binding_hash, self.der).digest()

    def covers(self, name: str) -> bool:
        """Whether it is for ``name``, as libpq compares: a wildcard is the whole first label."""
        asked = name.lower()
        return any(_matches(pattern.lower(), asked) for pattern in self.names)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("*.") and "." in name:
        return pattern[2:] == name.partition(".")[2]
    return pattern == name
