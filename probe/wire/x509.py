"""As much of an X.509 certificate as a diagnosis shows: names, times, who issued it.

Source: RFC 5280 section 4.1 (Certificate, Name, Validity) and 4.2.1.6 (SubjectAltName); X.690
for DER; RFC 4514 for a Name as text. Nothing here decides trust, which is OpenSSL's to decide.
It is read here since importing a library for it takes longer than a whole handshake (measured:
a quarter of a run with one attempt); the tests hold it against ``cryptography``.
"""

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from probe.wire import Malformed

_OID, _UTC_TIME, _SEQUENCE, _BMP_STRING = 0x06, 0x17, 0x30, 0x1E
_VERSION, _EXTENSIONS = 0xA0, 0xA3  # context-specific, constructed
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87  # GeneralName

MAX_NAMES = 100  # of one certificate; a certificate with more is cut

_ATTRIBUTES = {
    "550403": "CN",
    "550406": "C",
    "550407": "L",
    "550408": "ST",
    "550409": "STREET",
    "55040a": "O",
    "55040b": "OU",
    "0992268993f22c640101": "UID",
    "0992268993f22c640119": "DC",
}
_COMMON_NAME, _SUBJECT_ALT_NAME = "550403", "551d11"

_RSA, _ECDSA, _HASHES = "2a864886f70d0101", "2a8648ce3d04", "6086480165030402"
_RSA_PSS = _RSA + "0a"
_SIGNATURE_HASHES = {
    _RSA + "04": "md5",
    _RSA + "05": "sha1",
    _RSA + "0b": "sha256",
    _RSA + "0c": "sha384",
    _RSA + "0d": "sha512",
    _RSA + "0e": "sha224",
    _ECDSA + "01": "sha1",
    _ECDSA + "0301": "sha224",
    _ECDSA + "0302": "sha256",
    _ECDSA + "0303": "sha384",
    _ECDSA + "0304": "sha512",
}
_HASH_NAMES = {_HASHES + "01": "sha256", _HASHES + "02": "sha384", _HASHES + "03": "sha512"}


class X509(NamedTuple):
    """What a certificate says. ``signature_hash`` None: its signature names none (Ed25519)."""

    subject: str
    issuer: str
    common_names: tuple[str, ...]
    alternative_names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    signature_hash: str | None


class _Element(NamedTuple):
    tag: int
    content: bytes


def parse_x509(der: bytes) -> X509:
    """The certificate in ``der``. Raises :class:`Malformed`."""
    certificate = _only(der, _SEQUENCE)
    outer = list(_elements(certificate))
    if len(outer) != 3 or outer[0].tag != _SEQUENCE:
        raise Malformed("a certificate has three parts")
    fields = [e for e in _elements(outer[0].content) if e.tag != _VERSION]
    if len(fields) < 6:
        raise Malformed("a certificate without subject or key")
    _, _, issuer, validity, subject, _, *rest = fields
    times = list(_elements(validity.content))
    if len(times) != 2:
        raise Malformed("a certificate without validity")
    return X509(
        subject=_text_of(subject.content),
        issuer=_text_of(issuer.content),
        common_names=tuple(v for oid, v in _attributes(subject.content) if oid == _COMMON_NAME),
        alternative_names=tuple(_alternative_names(rest))[:MAX_NAMES],
        not_before=_time(times[0]),
        not_after=_time(times[1]),
        signature_hash=_signature_hash(outer[1].content),
    )


def _elements(data: bytes) -> Iterator[_Element]:
    """The DER elements that stand one behind the other."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise Malformed("DER that ends inside an element")
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4:
                raise Malformed("a DER length of more than four bytes")
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            raise Malformed("DER that ends inside an element")
        yield _Element(tag, data[at : at + length])
        at += length


def _only(data: bytes, tag: int) -> bytes:
    first = next(_elements(data), None)
    if first is None or first.tag != tag:
        raise Malformed(f"no DER element of type 0x{tag:02x}")
    return first.content


def _attributes(name: bytes) -> Iterator[tuple[str, str]]:
    for relative in _elements(name):
        for attribute in _elements(relative.content):
            parts = list(_elements(attribute.content))
            if len(parts) == 2 and parts[0].tag == _OID:
                yield parts[0].content.hex(), _string(parts[1])


def _string(element: _Element) -> str:
    encoding = "utf-16-be" if element.tag == _BMP_STRING else "utf-8"
    return element.content.decode(encoding, "backslashreplace")


def _text_of(name: bytes) -> str:
    """RFC 4514: the last part first; special characters escaped."""
    pairs = [(_ATTRIBUTES.get(oid, _dotted(oid)), value) for oid, value in _attributes(name)]
    return ",".join(f"{kind}={_escaped(value)}" for kind, value in reversed(pairs))


def _escaped(value: str) -> str:
    text = "".join("\\" + c if c in ',+"\\<>;' else c for c in value)
    if text[:1] in ("#", " "):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(text) > 1 else text


def _dotted(oid: str) -> str:
    numbers, value = [], 0
    for byte in bytes.fromhex(oid):
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    if not numbers:
        return "?"
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]]))


def _alternative_names(rest: list[_Element]) -> Iterator[str]:
    for element in rest:
        if element.tag != _EXTENSIONS:
            continue
        for extension in _elements(_only(element.content, _SEQUENCE)):
            parts = list(_elements(extension.content))
            if parts and parts[0].content.hex() == _SUBJECT_ALT_NAME:
                yield from _general_names(_only(parts[-1].content, _SEQUENCE))


def _general_names(names: bytes) -> Iterator[str]:
    for name in _elements(names):
        if name.tag == _DNS_NAME:
            yield name.content.decode("ascii", "backslashreplace")
        elif name.tag == _IP_ADDRESS and len(name.content) in (4, 16):
            yield str(ipaddress.ip_address(name.content))


def _time(element: _Element) -> datetime:
    """UTCTime with its two-digit year (RFC 5280, 4.1.2.5.1), or GeneralizedTime."""
    text = element.content.decode("ascii", "replace")
    if element.tag == _UTC_TIME:
        text = ("20" if text[:2] < "50" else "19") + text
    try:
        month, day, hour, minute, second = (int(text[n : n + 2]) for n in range(4, 14, 2))
        return datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise Malformed("a certificate with an unreadable time") from error


def _signature_hash(algorithm: bytes) -> str | None:
    parts = list(_elements(algorithm))
    oid = parts[0].content.hex() if parts else ""
    if oid == _RSA_PSS:
        named = (name for code, name in _HASH_NAMES.items() if code in algorithm.hex())
        return next(named, "sha1")
    return _SIGNATURE_HASHES.get(oid)
