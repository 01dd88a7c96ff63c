"""Signed statements: a JSON Web Signature over the statement, as one of its attachments."""

import base64
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509 import load_der_x509_certificate
from jwt.utils import base64url_decode

from theon.lrs.errors import StatementError
from theon.lrs.identity import fingerprint
from theon.lrs.reading import Part, read_json

USAGE = "http://adlnet.gov/expapi/attachments/signature"
CONTENT_TYPE = "application/octet-stream"
ALGORITHMS = ("RS256", "RS384", "RS512")


def check_signature(statement: Mapping[str, Any], part: Part, where: str) -> None:
    """Refuse a signature that is none, or is one of something else.

    Where the signature carries the signer's certificate (x5c), it is verified with its key;
    whether that certificate is to be trusted is for the reader to say.

    Raises:
        StatementError: says what does not hold.
    """
    try:
        token = part.body.decode("ascii").strip()
        header = jwt.get_unverified_header(token)
        payload = base64url_decode(token.split(".")[1])
    except (UnicodeDecodeError, jwt.PyJWTError, ValueError, IndexError):
        raise StatementError("the signature is no JSON Web Signature", where=where) from None
    if header.get("alg") not in ALGORITHMS:
        raise StatementError(
            f"a signature is made with one of {', '.join(ALGORITHMS)}", where=where
        )
    if "x5c" in header:
        _verify(token, header, where)
    signed = read_json(payload, where=f"{where}, payload")
    if not isinstance(signed, dict) or fingerprint(signed) != fingerprint(statement):
        raise StatementError("the signature is one of another statement", where=where)


def _verify(token: str, header: Mapping[str, Any], where: str) -> None:
    try:
        first = header["x5c"][0]
        key = load_der_x509_certificate(_base64(first)).public_key()
        if not isinstance(key, RSAPublicKey):
            raise ValueError("the certificate's key is none of RSA")
        jwt.PyJWS().decode(token, key, algorithms=[header["alg"]])
    except (ValueError, TypeError, IndexError, KeyError, jwt.PyJWTError) as error:
        raise StatementError(
            f"the signature does not hold under its certificate: {str(error)[:200]}", where=where
        ) from None


def _base64(words: Any) -> bytes:
    if not isinstance(words, str):
        raise TypeError("a certificate is no text")
    return base64.b64decode(words)
