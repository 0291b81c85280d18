"""A server's certificate: made up, or from files."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from probe.identity import LIFETIME, IdentityError, load_identity, make_identity, server_context


def test_a_made_up_certificate_is_short_lived_and_no_authority() -> None:
    made = make_identity(("db-1.example.com", "db-2.example.com"))
    certificate = x509.load_pem_x509_certificate(made.chain)
    certificate.verify_directly_issued_by(certificate)
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["db-1.example.com", "db-2.example.com"]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    now = datetime.now(UTC)
    assert (
        certificate.not_valid_before_utc < now < certificate.not_valid_after_utc <= now + LIFETIME
    )
    der = ssl.PEM_cert_to_DER_cert(made.chain.decode())
    assert made.fingerprint == certificate.fingerprint(certificate.signature_hash_algorithm).hex()  # type: ignore[arg-type]
    assert der
    server_context(made)


def test_two_made_up_keys_differ() -> None:
    assert make_identity(("a.example.com",)).key != make_identity(("a.example.com",)).key


def test_a_name_that_no_certificate_can_hold_is_told() -> None:
    with pytest.raises(IdentityError, match="no certificate"):
        make_identity(("bücher.example.com",))


def test_files_are_read_together_or_apart(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("db-1.example.com")
    chain, key, both = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "both.pem"
    chain.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    both.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    apart, together = load_identity(str(chain), str(key)), load_identity(str(both), None)
    assert apart.fingerprint == together.fingerprint
    server_context(apart)
    server_context(together)


def test_what_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(IdentityError, match="cannot read"):
        load_identity(str(missing), None)
    one, other = make_identity(("a.example.com",)), make_identity(("a.example.com",))
    with pytest.raises(IdentityError, match="cannot use the certificate"):
        server_context(one._replace(key=other.key))
    with pytest.raises(IdentityError, match="cannot use the certificate"):
        server_context(one._replace(chain=b"nonsense"))
