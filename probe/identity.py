"""A server's certificate and key: from files, or made up and signed by itself.

Takes names or paths; gives what a TLS server shows. A made-up key lives in memory, and for a
moment in a file that only its owner can read, since OpenSSL's interface in Python takes nothing
else; it is worth nothing to anybody, and dies with the process.
"""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from probe.attempt import ALPN

LIFETIME = timedelta(days=30)  # of a made-up certificate; a witness is not left standing
CLOCK_SKEW = timedelta(hours=1)


class IdentityError(Exception):
    """A certificate or key that cannot be used, or made; the text says why."""


class Identity(NamedTuple):
    """The certificate chain and the key in PEM."""

    chain: bytes
    key: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the leaf's DER, in hexadecimal."""
        head, end, _ = self.chain.decode("ascii", "replace").partition(ssl.PEM_FOOTER)
        start = head.find(ssl.PEM_HEADER)
        return sha256(ssl.PEM_cert_to_DER_cert(head[start:] + end)).hexdigest()


def make_identity(names: tuple[str, ...], now: datetime | None = None) -> Identity:
    """A key, and a certificate for these DNS names that it signs itself; no authority.

    Raises :class:`IdentityError` for a name that no certificate can hold, and where the package
    ``cryptography`` is missing.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise IdentityError("making a certificate needs the package cryptography") from error
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        # what is long may be no common name, whose limit is 64 characters
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pgprobe witness")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
            .sign(key, hashes.SHA256())
        )
    except ValueError as error:
        raise IdentityError(f"no certificate can be made for {names!r}: {error}") from error
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def load_identity(certificate: str, key: str | None) -> Identity:
    """From PEM files; without a key file the certificate's holds it, too.

    Raises :class:`IdentityError`.
    """
    try:
        return Identity(Path(certificate).read_bytes(), Path(key or certificate).read_bytes())
    except OSError as error:
        raise IdentityError(f"cannot read {error.filename!r}: {error.strerror}") from error


def server_context(identity: Identity) -> ssl.SSLContext:
    """TLS 1.2 and later, ALPN ``postgresql`` selected where it is offered: as PostgreSQL 17.

    Raises :class:`IdentityError` when certificate and key do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([ALPN])
    # no tickets, as PostgreSQL: a session that is resumed would show another ClientHello
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    with tempfile.TemporaryDirectory(prefix="pgprobe-") as place:  # mode 0700
        chain, key = Path(place, "chain.pem"), Path(place, "key.pem")
        chain.write_bytes(identity.chain)
        key.write_bytes(identity.key)
        try:
            context.load_cert_chain(chain, key, password="")  # never ask at the terminal
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or error
            text = str(reason).replace("_", " ").lower()
            raise IdentityError(f"cannot use the certificate and its key: {text}") from error
    return context
