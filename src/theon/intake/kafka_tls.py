"""What is wrong with a broker's TLS: a handshake of our own, for Kafka's client does not say.

It says of a certificate that expired, of one for another host and of one by an unknown authority
the same, and of a listener that wants TLS, or none, nothing at all. Nothing is sent but the
handshake.
"""

import socket
import ssl
from collections.abc import Mapping
from typing import Any

LOOK_S = 2.0


def look(host: str, port: int, given: Mapping[str, Any], protocol: str) -> tuple[str, str] | None:
    """What is wrong and what to do; None if nothing is, or nobody answers.

    Args:
        host: of the broker.
        port: of its listener.
        given: the client's properties.
        protocol: its security protocol.
    """
    encrypted = protocol in ("ssl", "sasl_ssl")
    try:
        context = _context(given) if encrypted else _trusting()
    except (OSError, ValueError):  # the client says so itself
        return None
    try:
        with (
            socket.create_connection((host, port), LOOK_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None if encrypted else _WANTS_TLS
    except ssl.SSLCertVerificationError as error:
        return _certificate(error, host)
    except (ssl.SSLError, ConnectionResetError, TimeoutError) as error:
        if not encrypted or isinstance(error, TimeoutError):
            return None
        return _NO_TLS if _speaks_no_tls(error) else None
    except (OSError, ValueError):
        return None


_WANTS_TLS = (
    "it speaks TLS there, and Theon does not",
    "Set security.protocol=SASL_SSL, or SSL where clients do not sign in, and start Theon again.",
)
_NO_TLS = (
    "it does not speak TLS there",
    "Name its listener for TLS in KAFKA_BROKERS, or set security.protocol to what it speaks, and"
    " start Theon again.",
)


def _certificate(error: ssl.SSLCertVerificationError, host: str) -> tuple[str, str]:
    said = error.verify_message.rstrip(".")
    lowered = said.lower()
    if "expired" in lowered or "not yet valid" in lowered:
        todo = (
            "Give the broker a valid one, or set this machine's clock."
            " Theon goes on by itself then."
        )
    elif "mismatch" in lowered:
        todo = (
            f"Give the broker one for {host}, or name the broker in KAFKA_BROKERS as its"
            " certificate does and start Theon again."
        )
    else:
        todo = (
            "Set ssl.ca.location to the certificate of the authority that signed it, and start"
            " Theon again."
        )
    return f"its certificate is not accepted: {said}", todo


def _speaks_no_tls(error: OSError) -> bool:
    said = str(error).lower()
    return isinstance(error, (ssl.SSLEOFError, ConnectionResetError)) or "wrong version" in said


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(given: Mapping[str, Any]) -> ssl.SSLContext:
    """As the client checks."""
    if str(given.get("enable.ssl.certificate.verification", "true")).lower() == "false":
        return _trusting()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if given.get("ssl.endpoint.identification.algorithm", "https") == "none":
        context.check_hostname = False
    location, text = given.get("ssl.ca.location"), given.get("ssl.ca.pem")
    if location not in (None, "probe"):
        try:
            context.load_verify_locations(cafile=location)
        except IsADirectoryError:
            context.load_verify_locations(capath=location)
    elif text is not None:
        context.load_verify_locations(cadata=text)
    else:
        context.load_default_certs()
    return context
