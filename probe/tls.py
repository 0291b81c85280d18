"""TLS in memory, either end: ciphertext in, ciphertext out, no socket.

The client takes an attempt's knobs; it gives bytes to send, what was said inside, and the
library's own reason when it gives up. Python's ``ssl`` hides most of a failed handshake and,
before 3.13, the chain of an unverified peer; ``SSLContext._msg_callback``, which the standard
library keeps for its own debugging, shows each protected message as the specification draws it.
That private name is used here and nowhere else.
"""

from __future__ import annotations

import contextlib
import ssl
import warnings
from collections.abc import Callable, Iterator

from probe.attempt import ALPN, Attempt, HelloShape, TlsVersions
from probe.transcript import Established
from probe.wire import printable, records
from probe.wire.hello import (
    CERTIFICATE,
    CERTIFICATE_REQUEST,
    ENCRYPTED_EXTENSIONS,
    NEW_SESSION_TICKET,
)

# With these the ClientHello is about 2.1 kB: longer than one segment, far from any limit known.
_PADDING_PROTOCOLS = [f"pgprobe-padding-{n}-{'x' * 200}" for n in range(8)]

_TOLD = {ENCRYPTED_EXTENSIONS, CERTIFICATE, CERTIFICATE_REQUEST, NEW_SESSION_TICKET}

_VERSIONS = {
    TlsVersions.MODERN: (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.MAXIMUM_SUPPORTED),
    TlsVersions.ONLY_1_2: (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
    TlsVersions.OBSOLETE: (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1),
}


class TlsError(Exception):
    """The TLS library gave up; the text is its reason, safe to show."""


class LeftError(TlsError):
    """It had to, since the peer said close_notify."""

    def __init__(self) -> None:
        super().__init__("the peer said close_notify")


class UntrustedError(TlsError):
    """It gave up because the chain does not lead to the roots that it was given."""


class CertificateFileError(Exception):
    """A file of roots, a certificate or a key that cannot be used; the text says which."""


class _Session:
    """Either end of one TLS session; its messages are bytes in memory."""

    _session: ssl.SSLObject

    def __init__(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    def handshake(self) -> bool:
        """Go on as far as what was fed allows; True when finished. Raises :class:`TlsError`."""
        return self._try(self._session.do_handshake)

    def feed(self, data: bytes) -> None:
        """Ciphertext from the peer."""
        self._incoming.write(data)

    def drain(self) -> bytes:
        """Ciphertext for the peer; empty when there is none."""
        return self._outgoing.read()

    def write(self, data: bytes) -> None:
        """Application data for the peer; take the ciphertext from :meth:`drain`."""
        self._session.write(data)

    def read(self) -> bytes | None:
        """Application data from the peer; None: more ciphertext is needed; empty: it left.

        Raises :class:`TlsError`.
        """
        data: list[bytes] = []
        try:
            if not self._try(lambda: data.append(self._session.read(65_536))):
                return None
        except LeftError:
            return b""
        return data[0]

    def leave(self) -> None:
        """Say close_notify."""
        with contextlib.suppress(ssl.SSLError):
            self._session.unwrap()

    @property
    def established(self) -> Established:
        """What was agreed on. Only after :meth:`handshake` gave True."""
        cipher = self._session.cipher()
        return Established(
            version=(self._session.version() or "?").removeprefix("TLSv"),
            cipher=cipher[0] if cipher else "?",
            alpn=self._session.selected_alpn_protocol(),
        )

    def _try(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError as error:
            raise LeftError from error
        except ssl.SSLCertVerificationError as error:
            raise UntrustedError(printable(error.verify_message)) from error
        except ssl.SSLError as error:
            raise TlsError(_reason(error)) from error
        return True


class TlsClient(_Session):
    """One TLS session from ClientHello to close_notify.

    Raises :class:`CertificateFileError` when a file that the attempt names cannot be used.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__()
        self._protected: list[bytes] = []
        context = make_context(attempt)
        context._msg_callback = self._on_message  # type: ignore[attr-defined]
        self._session = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=attempt.server_name
        )

    def _on_message(
        self, _: object, direction: str, version: int, kind: int, message: int, data: bytes
    ) -> None:
        if direction != "read":
            return
        protected = version == ssl.TLSVersion.TLSv1_3 and kind == records.HANDSHAKE
        if (protected and message in _TOLD) or kind == records.ALERT:
            self._protected.append(bytes(data))

    @property
    def leaf(self) -> bytes | None:
        """The DER of the peer's certificate, or None when it has shown none."""
        return self._session.getpeercert(binary_form=True)

    def told(self) -> Iterator[bytes]:
        """The protected handshake messages and alerts from the peer since the last call."""
        told, self._protected = self._protected, []
        yield from told


class TlsServer(_Session):
    """The server's end, with a context from :func:`probe.identity.server_context`."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)


def make_context(attempt: Attempt) -> ssl.SSLContext:
    """The context that an attempt asks for: verifying only where it names roots.

    Raises :class:`CertificateFileError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # names are judged from the leaf, and said in words
    context.verify_mode = ssl.CERT_REQUIRED if attempt.roots else ssl.CERT_NONE
    oldest, newest = _VERSIONS[attempt.versions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # obsolete TLS is asked for on purpose
        context.minimum_version, context.maximum_version = oldest, newest
    if attempt.versions is TlsVersions.OBSOLETE:
        context.set_ciphers("ALL:@SECLEVEL=0")
    if attempt.alpn:
        padding = _PADDING_PROTOCOLS if attempt.shape is HelloShape.LARGE else []
        context.set_alpn_protocols([ALPN, *padding])
    if attempt.key_log and attempt.password is None:  # a password is worth more than a recording
        context.keylog_filename = attempt.key_log
    if attempt.roots == "system":
        context.load_default_certs()
    elif attempt.roots:
        _load(context.load_verify_locations, "CA file", attempt.roots)
    if attempt.client_certificate:
        certificate, key = attempt.client_certificate
        _load(context.load_cert_chain, "client certificate", certificate, key)
    return context


def _load(load: Callable[..., object], what: str, *paths: str | None) -> None:
    try:
        load(*paths)
    except OSError as error:  # ssl.SSLError is one too
        reason = error.strerror if error.errno and error.strerror else _reason(error)
        shown = printable(paths[0] or "", 120)
        raise CertificateFileError(f"cannot use the {what} {shown!r}: {reason}") from error


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return printable(str(reason).replace("_", " ").lower() if reason else str(error))
