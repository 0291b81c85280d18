"""The certificate reader, held against ``cryptography``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.certificate import Certificate
from probe.wire import Malformed
from probe.wire.x509 import parse_x509

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
BEGINS = datetime(2020, 1, 1, tzinfo=UTC)
ENDS = datetime(2120, 1, 1, tzinfo=UTC)

ATTRIBUTES = [
    x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A, B + C; #1"),
    x509.NameAttribute(NameOID.COMMON_NAME, "db-1.example.test"),
]


def made(
    attributes: list[x509.NameAttribute[str]] = ATTRIBUTES,
    names: tuple[x509.GeneralName, ...] = (),
    key: object = EC_KEY,
    algorithm: hashes.HashAlgorithm | None = None,
    pss: bool = False,
    begins: datetime = BEGINS,
    ends: datetime = ENDS,
) -> x509.Certificate:
    name = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())  # type: ignore[attr-defined]
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    rsa_padding = padding.PSS(padding.MGF1(hashes.SHA384()), 48) if pss else None
    return builder.sign(key, algorithm, rsa_padding=rsa_padding)  # type: ignore[arg-type]


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def test_subject_issuer_and_times_are_those_that_cryptography_reads() -> None:
    theirs = made(algorithm=hashes.SHA256())
    ours = Certificate(der(theirs))
    assert ours.subject == theirs.subject.rfc4514_string()
    assert ours.issuer == theirs.issuer.rfc4514_string()
    assert ours.validity == (theirs.not_valid_before_utc, theirs.not_valid_after_utc)
    assert ours.fingerprint == theirs.fingerprint(hashes.SHA256()).hex()


@settings(max_examples=50, deadline=None)
@given(
    st.text(min_size=1, max_size=16).filter(lambda t: "\0" not in t),
    st.datetimes(datetime(1950, 1, 1), datetime(2200, 1, 1)),
)
def test_any_common_name_and_any_time_is_read_as_cryptography_reads_it(
    name: str, begins: datetime
) -> None:
    begins = begins.replace(microsecond=0, tzinfo=UTC)
    theirs = made(
        [x509.NameAttribute(NameOID.COMMON_NAME, name)],
        algorithm=hashes.SHA256(),
        begins=begins,
        ends=begins + timedelta(days=1),
    )
    ours = parse_x509(der(theirs))
    assert ours.common_names == (name,)
    assert ours.not_before == theirs.not_valid_before_utc
    assert ours.subject == theirs.subject.rfc4514_string()


def test_the_alternative_names_are_what_it_is_for_and_the_common_name_only_without_them() -> None:
    import ipaddress

    listed = (
        x509.DNSName("*.db.example.test"),
        x509.RFC822Name("a@example.test"),
        x509.IPAddress(ipaddress.ip_address("::1")),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    )
    named = Certificate(der(made(names=listed, algorithm=hashes.SHA256())))
    assert named.names == ("*.db.example.test", "::1", "127.0.0.1")
    assert Certificate(der(made(algorithm=hashes.SHA256()))).names == ("db-1.example.test",)


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("db-1.example.test", "DB-1.example.test", True),
        ("*.example.test", "db-1.example.test", True),
        ("*.example.test", "a.b.example.test", False),
        ("*.example.test", "example.test", False),
        ("db-2.example.test", "db-1.example.test", False),
    ],
)
def test_a_wildcard_covers_one_label(pattern: str, name: str, covered: bool) -> None:
    certificate = made(names=(x509.DNSName(pattern),), algorithm=hashes.SHA256())
    assert Certificate(der(certificate)).covers(name) is covered


@pytest.mark.parametrize(
    ("key", "algorithm", "pss", "expected"),
    [
        (RSA_KEY, hashes.SHA256(), False, "sha256"),
        (RSA_KEY, hashes.SHA384(), False, "sha384"),
        (RSA_KEY, hashes.SHA384(), True, "sha384"),
        (EC_KEY, hashes.SHA512(), False, "sha512"),
        (ed25519.Ed25519PrivateKey.generate(), None, False, None),
        (ed448.Ed448PrivateKey.generate(), None, False, None),
    ],
)
def test_the_binding_hash_is_the_signatures_and_ed_signatures_have_none(
    key: object, algorithm: hashes.HashAlgorithm | None, pss: bool, expected: str | None
) -> None:
    assert Certificate(der(made(key=key, algorithm=algorithm, pss=pss))).binding_hash == expected


WHOLE = der(made(names=(x509.DNSName("db-1.example.test"),), algorithm=hashes.SHA256()))


def test_every_truncation_is_malformed() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(Malformed):
            parse_x509(WHOLE[:length])


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_certificate_is_read_or_malformed_and_nothing_else(at: int, by: bytes) -> None:
    damaged = WHOLE[:at] + by + WHOLE[at + len(by) :]
    assert Certificate(damaged).readable in (True, False)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_certificate_and_have_empty_facts(data: bytes) -> None:
    certificate = Certificate(data)
    assert not certificate.readable
    assert (certificate.subject, certificate.names, certificate.validity) == ("", (), None)
    assert certificate.binding_hash is None
