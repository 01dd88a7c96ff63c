"""A certificate authority for tests, and the PEM files of brokers and clients that it signs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """Files of one certificate.

    Attributes:
        chain: the certificate alone.
        key: its private key.
        both: key and certificate, as Kafka's brokers want them.
    """

    chain: Path
    key: Path
    both: Path


class Authority:
    """Signs certificates.

    Attributes:
        file: its own certificate.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Make its key and certificate in a folder."""
        self._folder = folder
        self._key = generate_private_key(SECP256R1())
        self._name = _named(name)
        self.file = folder / f"{name}.pem"
        constraint = x509.BasicConstraints(ca=True, path_length=0)
        made = _begun(self._name, self._key, 30 * DAY).issuer_name(self._name)
        signed = made.add_extension(constraint, critical=True).sign(self._key, SHA256())
        self.file.write_bytes(signed.public_bytes(Encoding.PEM))

    def sign(
        self,
        name: str,
        *,
        host: str = "127.0.0.1",
        lasts: timedelta = 30 * DAY,
        password: bytes | None = None,
    ) -> Certificate:
        """Make a certificate.

        Args:
            name: its common name, and that of its files.
            host: the machine that it stands for, a name or an address.
            lasts: from now on; negative for one that has expired.
            password: encrypts the key in `key`.
        """
        key = generate_private_key(SECP256R1())
        try:
            stands_for: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            stands_for = x509.DNSName(host)
        names = x509.SubjectAlternativeName([stands_for])
        made = _begun(_named(name), key, lasts).issuer_name(self._name)
        signed = made.add_extension(names, critical=False).sign(self._key, SHA256())
        locked = BestAvailableEncryption(password) if password else NoEncryption()
        files = Certificate(*(self._folder / f"{name}.{kind}" for kind in ("crt", "key", "both")))
        chain = signed.public_bytes(Encoding.PEM)
        files.chain.write_bytes(chain)
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        files.both.write_bytes(plain + chain)
        return files


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _begun(
    name: x509.Name, key: EllipticCurvePrivateKey, lasts: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 60 * DAY)
        .not_valid_after(now + lasts)
    )
