"""Bearer tokens: what holds, and every known way to forge one."""

import base64
import hashlib
import hmac
import json
import threading
import time
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi.testclient import TestClient
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.access.conftest import make_app, plain_settings
from theon.access.errors import SignInError
from theon.access.principals import Principal, Via
from theon.access.requests import Access
from theon.access.roles import Role
from theon.access.tokens import PublicKeys, Tokens, open_tokens
from theon.errors import InputError, UnavailableError
from theon.settings import Settings
from theon.store.engine import Store

SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 - of these tests
AUDIENCE = "theon"
ISSUER = "https://issuer.example"
URL = "https://issuer.example/jwks"

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says; None takes a claim away."""
    said = {
        "sub": "u1",
        "name": "Ann",
        "role": "teacher",
        "campus": "oak",
        "aud": AUDIENCE,
        "iss": ISSUER,
        # Some of these are made when tests are collected, perhaps long before they run.
        "exp": int(time.time()) + 86_400,
    } | changes
    return {name: value for name, value in said.items() if value is not None}


def sign(key: Any = SECRET, algorithm: str = "HS256", kid: Any = None, **changes: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these keys are bad on purpose
        return jwt.encode(claims(**changes), key, algorithm, headers)


def raw(header: dict[str, Any], body: dict[str, Any], signature: bytes = b"") -> str:
    """A token as no library would write it."""
    parts = [json.dumps(header).encode(), json.dumps(body).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def raw_hs256(key: bytes, header: dict[str, Any]) -> str:
    signed = raw(header, claims()).rpartition(".")[0]
    mac = hmac.new(key, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def published(*entries: tuple[str | None, Any], **more: Any) -> bytes:
    """A JWKS of the public halves of these keys."""
    keys = []
    for kid, key in entries:
        kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
        entry = kind.to_jwk(key.public_key(), as_dict=True) | {"use": "sig"} | more
        keys.append(entry if kid is None else entry | {"kid": kid})
    return json.dumps({"keys": keys}).encode()


class Issuer:
    """What stands at the JWKS URL, and a clock."""

    def __init__(self, document: bytes) -> None:
        self.document: bytes | None = document
        self.fetches = 0
        self.now = 1000.0

    def fetch(self, url: str) -> bytes:
        assert url == URL
        self.fetches += 1
        if self.document is None:
            raise OSError("no answer")
        return self.document

    def tokens(self) -> Tokens:
        keys = PublicKeys(URL, fetch=self.fetch, clock=lambda: self.now)
        return Tokens(keys, audience=AUDIENCE, issuer=ISSUER)


@pytest.fixture
def by_secret(store_settings: Settings) -> Tokens:
    tokens = open_tokens(jwt_settings(store_settings))
    assert tokens is not None
    return tokens


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(published(("r1", RSA_KEY), ("e1", EC_KEY)))


def jwt_settings(settings: Settings, **changes: Any) -> Settings:
    from pydantic import SecretStr

    given = {"jwt_secret": SECRET, "jwt_audience": AUDIENCE, "jwt_issuer": ISSUER, **changes}
    if given["jwt_secret"] is not None:
        given["jwt_secret"] = SecretStr(given["jwt_secret"])
    return plain_settings(settings, **given)


def test_a_good_token_is_its_subject(by_secret: Tokens) -> None:
    assert by_secret.read(sign()) == Principal(
        f"token:{ISSUER}#u1", "Ann", Role.TEACHER, "oak", Via.TOKEN
    )
    assert by_secret.read(sign(name=None, aud=["other", AUDIENCE])).name == "u1"
    everywhere = by_secret.read(sign(role="system_administrator", campus=None))
    assert everywhere.campus == "district"


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": lambda now: now - 60},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": lambda now: now + 600},
        {"iat": lambda now: now + 600},
        {"aud": "other"},
        {"aud": ["other"]},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "u\x00"},
        {"sub": "u" * 256},
        {"role": None},
        {"role": "root"},
        {"role": ["teacher"]},
        {"campus": None},
        {"campus": ""},
        {"campus": ["oak", "elm"]},
        {"campus": "district"},
        {"role": "campus_administrator", "campus": "district"},
        {"role": "service", "campus": None},
        {"role": "system_administrator"},
    ],
    ids="-".join,  # the names only: a time in an id would differ between workers
)
def test_a_token_that_lacks_something_is_refused(
    by_secret: Tokens, changes: dict[str, Any]
) -> None:
    """Also one that leaves its campus open: nothing stands for all of them by default."""
    now = int(time.time())
    said = {name: value(now) if callable(value) else value for name, value in changes.items()}
    with pytest.raises(SignInError, match="bearer token"):
        by_secret.read(sign(**said))


@pytest.mark.parametrize(
    "forged",
    [
        raw({"alg": "none"}, claims()),
        raw({"alg": "None", "typ": "JWT"}, claims()),
        raw({"alg": ""}, claims()),
        raw({}, claims()),
        raw({"alg": ["HS256"]}, claims()),
        raw({"alg": "HS256"}, claims()),
        sign("another-secret-of-thirty-two-bytes"),
        sign(algorithm="HS512", key=SECRET * 2),
        sign(algorithm="HS384", key=SECRET + SECRET[:16]),
        sign(RSA_KEY, "RS256"),
        sign() + "x",
        sign()[:-2],
        "",
        "a.b.c",
        "....",
        "{}",
    ],
    ids=lambda _: "token",
)
def test_a_token_not_signed_by_the_secret_is_refused(by_secret: Tokens, forged: str) -> None:
    """No algorithm at all, another one, another key, another content."""
    with pytest.raises(SignInError):
        by_secret.read(forged)


def test_public_keys_of_both_kinds_are_accepted(issuer: Issuer) -> None:
    """Fetched once for many tokens."""
    tokens = issuer.tokens()
    for _ in range(3):
        assert tokens.read(sign(RSA_KEY, "RS256", "r1")).name == "Ann"
        assert tokens.read(sign(EC_KEY, "ES256", "e1")).name == "Ann"
    assert issuer.fetches == 1


def _pem() -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, kind)


@pytest.mark.parametrize(
    "forged",
    [
        raw({"alg": "none", "kid": "r1"}, claims()),
        raw_hs256(_pem(), {"alg": "HS256", "kid": "r1"}),
        raw_hs256(_pem().strip(), {"alg": "HS256", "kid": "r1"}),
        raw_hs256(_pem(), {"alg": "RS256", "kid": "r1"}),
        sign(RSA_KEY, "RS512", "r1"),
        sign(RSA_KEY, "PS256", "r1"),
        sign(RSA_KEY, "RS256", "e1"),
        sign(EC_KEY, "ES256", "r1"),
        sign(rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256", "r1"),
        sign(RSA_KEY, "RS256", "gone"),
        sign(RSA_KEY, "RS256"),
        raw({"alg": "RS256", "kid": 7}, claims()),
        raw({"alg": "RS256", "kid": {"a": 1}}, claims()),
    ],
    ids=lambda _: "token",
)
def test_algorithms_and_keys_are_not_confused(issuer: Issuer, forged: str) -> None:
    """A public key is no secret, a key has one algorithm, and no id means any key at all."""
    with pytest.raises(SignInError):
        issuer.tokens().read(forged)


def test_a_key_brought_along_is_not_used(issuer: Issuer) -> None:
    """Neither one in the header nor one at an address in it."""
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    headers = {
        "kid": "r1",
        "jwk": RSAAlgorithm.to_jwk(own.public_key(), as_dict=True),
        "jku": "https://evil.example/jwks",
    }
    with pytest.raises(SignInError):
        issuer.tokens().read(jwt.encode(claims(), own, "RS256", headers))
    assert issuer.fetches == 1


def test_keys_that_must_not_sign_are_passed_over() -> None:
    """A secret in public, a key for encryption, another algorithm, nonsense."""
    secret = {"kty": "oct", "kid": "s1", "k": base64.urlsafe_b64encode(SECRET.encode()).decode()}
    document = json.loads(published(("r1", RSA_KEY)))
    document["keys"] += [
        secret,
        json.loads(published(("enc", RSA_KEY), use="enc"))["keys"][0],
        json.loads(published(("ps", RSA_KEY), alg="PS256"))["keys"][0],
        {"kty": "RSA", "kid": "broken"},
        "nonsense",
    ]
    tokens = Issuer(json.dumps(document).encode()).tokens()
    tokens.read(sign(RSA_KEY, "RS256", "r1"))
    for forged in (
        sign(SECRET, "HS256", "s1"),
        sign(RSA_KEY, "RS256", "enc"),
        sign(RSA_KEY, "PS256", "ps"),
    ):
        with pytest.raises(SignInError):
            tokens.read(forged)


def test_a_weak_key_is_refused() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    with pytest.raises(SignInError):
        Issuer(published(("w", weak))).tokens().read(sign(weak, "RS256", "w"))


def test_one_key_without_an_id_serves_tokens_without_one() -> None:
    tokens = Issuer(published((None, RSA_KEY))).tokens()
    assert tokens.read(sign(RSA_KEY, "RS256")).name == "Ann"


def test_a_new_key_is_found_and_an_old_one_forgotten(issuer: Issuer) -> None:
    """Rotation needs no restart: the new id is looked for, the old ends with the next fetch."""
    tokens = issuer.tokens()
    old = sign(RSA_KEY, "RS256", "r1")
    tokens.read(old)
    newer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    issuer.document = published(("r2", newer))
    issuer.now += 60
    tokens.read(old)
    tokens.read(sign(newer, "RS256", "r2"))
    with pytest.raises(SignInError):
        tokens.read(old)


def test_unknown_ids_do_not_make_us_ask_again_and_again(issuer: Issuer) -> None:
    """Anybody can send one; the issuer is asked once in ten seconds, whatever comes."""
    tokens = issuer.tokens()
    for n in range(20):
        with pytest.raises(SignInError):
            tokens.read(sign(RSA_KEY, "RS256", f"unknown{n}"))
    assert issuer.fetches == 1
    issuer.now += 11
    with pytest.raises(SignInError):
        tokens.read(sign(RSA_KEY, "RS256", "unknown"))
    assert issuer.fetches == 2


def test_keys_outlive_a_short_failure_of_their_issuer(issuer: Issuer) -> None:
    """For an hour; then, and before the first answer, it is our failure, not the token's."""
    tokens, good = issuer.tokens(), sign(RSA_KEY, "RS256", "r1")
    document, issuer.document = issuer.document, None
    for _ in range(2):
        with pytest.raises(UnavailableError, match="keys"):
            tokens.read(good)
    assert issuer.fetches == 1
    issuer.document = document
    issuer.now += 11
    tokens.read(good)
    for broken in (None, b"", b"[]", b'{"keys": []}', b'{"keys": 1}'):
        issuer.document = broken
        issuer.now += 400
        tokens.read(good)
    issuer.now += 3600
    with pytest.raises(UnavailableError):
        tokens.read(good)


def test_keys_come_from_the_address_that_was_set() -> None:
    """Over real HTTP; where it sends us elsewhere, or sends too much, nothing is taken."""
    paths: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(302 if self.path == "/moved" else 200)
            self.send_header("Location", "/jwks")
            self.end_headers()
            padding = b" " * (2 << 20 if self.path == "/large" else 0)
            self.wfile.write(padding + published(("r1", RSA_KEY)))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        good = sign(RSA_KEY, "RS256", "r1")

        def tokens(path: str) -> Tokens:
            url = f"http://127.0.0.1:{server.server_port}{path}"
            return Tokens(PublicKeys(url), audience=AUDIENCE, issuer=ISSUER)

        assert tokens("/jwks").read(good).name == "Ann"
        for path in ("/moved", "/large"):
            with pytest.raises(UnavailableError):
                tokens(path).read(good)
        server.shutdown()
    assert paths == ["/jwks", "/moved", "/large"]


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"jwt_secret": ""}, "JWT_SECRET"),
        ({"jwt_secret": "hunter2-hunter2"}, "JWT_SECRET"),
        ({"jwt_secret": SECRET, "jwt_jwks_url": URL}, "JWT_JWKS_URL"),
        ({"jwt_audience": None}, "JWT_AUDIENCE"),
        ({"jwt_issuer": ""}, "JWT_ISSUER"),
        ({"jwt_secret": None, "jwt_jwks_url": "http://issuer.example/jwks"}, "JWT_JWKS_URL"),
        ({"jwt_secret": None, "jwt_jwks_url": "file:///etc/passwd"}, "JWT_JWKS_URL"),
        ({"jwt_secret": None, "jwt_jwks_url": "issuer.example"}, "JWT_JWKS_URL"),
    ],
    ids=str,
)
def test_settings_that_would_let_strangers_in_are_refused(
    store_settings: Settings, changes: dict[str, Any], variable: str
) -> None:
    """At start, by the name of the variable, and without repeating the secret."""
    with pytest.raises(InputError, match=variable) as caught:
        open_tokens(jwt_settings(store_settings, **changes))
    assert "hunter2" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_secret_is_not_shown_with_the_settings(store_settings: Settings) -> None:
    assert SECRET not in repr(jwt_settings(store_settings))


def test_tokens_are_not_accepted_where_none_are_set_up(client: TestClient) -> None:
    answer = client.get("/people", headers={"Authorization": f"Bearer {sign()}"})
    assert answer.status_code == 401
    assert "JWT_SECRET" in answer.json()["next_step"]


def test_a_token_opens_routes_within_its_campus(district: Store, store_settings: Settings) -> None:
    client = TestClient(make_app(Access(district, jwt_settings(store_settings))))
    get: Callable[..., Any] = lambda **changes: client.get(  # noqa: E731
        "/people", headers={"Authorization": f"Bearer {sign(**changes)}"}
    )
    assert get().json() == ["u-oak"]
    assert get(campus="elm").json() == ["u-elm"]
    assert get(campus="nowhere").json() == []
    assert get(role="learner").status_code == 403
    expired = get(exp=int(time.time()) - 60)
    assert expired.status_code == 401
    assert set(expired.json()) == {"error", "next_step"}
