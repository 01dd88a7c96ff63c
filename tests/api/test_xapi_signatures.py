"""A signed statement carries a signature of itself, or is refused."""

import base64
import datetime
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.api.xapi_service import (
    ANN,
    BEN,
    SIGNATURE,
    STATEMENTS,
    Lrs,
    attachment,
    multipart,
    statement,
)


@cache
def key(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def certificate(number: int = 0) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "signer")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key(number).public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key(number), hashes.SHA256())
    )
    return base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()


def sign(payload: Any, algorithm: str = "RS256", **headers: Any) -> bytes:
    secret: Any = key(0) if algorithm.startswith("RS") else "x" * 64
    return jwt.encode(payload, secret, algorithm, headers=headers).encode()


def send(lrs: Lrs, sent: dict[str, Any], signature: bytes, **changes: Any) -> int:
    shown = attachment(
        signature,
        **{"usageType": SIGNATURE, "contentType": "application/octet-stream", **changes},
    )
    signed = {**sent, "attachments": [shown]}
    kind = {"Content_Type": "application/octet-stream"}
    answer = lrs.client.post(STATEMENTS, **multipart(signed, signature, **kind))
    assert answer.status_code in (200, 400), answer.text
    assert len(lrs.ids()) == (answer.status_code == 200)
    return answer.status_code


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512"])
@pytest.mark.parametrize("shown", [{}, {"x5c": True}])
def test_a_signature_of_the_statement_is_taken(
    lrs: Lrs, algorithm: str, shown: dict[str, Any]
) -> None:
    headers = {"x5c": [certificate()]} if shown else {}
    sent = statement(context={"contextActivities": {"parent": {"id": "a:b"}}})
    assert send(lrs, sent, sign(sent, algorithm, **headers)) == 200


def test_a_signature_of_something_else_is_refused(lrs: Lrs) -> None:
    sent = statement()
    assert send(lrs, sent, sign({**sent, "actor": BEN})) == 400
    assert send(lrs, sent, sign({"no": "statement"})) == 400


def test_a_signature_by_another_key_than_its_certificate_is_refused(lrs: Lrs) -> None:
    sent = statement()
    assert send(lrs, sent, sign(sent, x5c=[certificate(1)])) == 400
    for shown in (["x"], "x", [], [1], [base64.b64encode(b"x").decode()], {}):
        assert send(lrs, sent, sign(sent, x5c=shown)) == 400


def test_only_three_algorithms_sign(lrs: Lrs) -> None:
    sent = statement()
    assert send(lrs, sent, sign(sent, "HS256")) == 400


@pytest.mark.parametrize("signature", [b"", b"abc", b"a.b.c", b"\xff\xfe", b"e30.e30.", b"e30..x"])
def test_what_is_no_signature_is_refused(lrs: Lrs, signature: bytes) -> None:
    assert send(lrs, statement(), signature) == 400


def test_a_signature_is_a_file_that_comes_along(lrs: Lrs) -> None:
    sent = statement()
    assert send(lrs, sent, sign(sent), contentType="text/plain") == 400
    shown = attachment(
        b"x", usageType=SIGNATURE, contentType="application/octet-stream", fileUrl="a:b"
    )
    assert lrs.post({**sent, "attachments": [shown]}).status_code == 400


def test_the_statement_is_compared_and_not_its_letters(lrs: Lrs) -> None:
    """The order of properties, what a store adds, and thousandths of a second were not signed."""
    sent = statement(actor=ANN, result={"duration": "PT1.239S"})
    signed = {**{name: sent[name] for name in reversed(sent)}, "version": "1.0.0"}
    signed["result"] = {"duration": "PT1.23S"}
    assert send(lrs, sent, sign(signed)) == 200
