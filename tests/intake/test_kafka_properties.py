"""Kafka's properties: what cannot be meant ends the start, and no secret is repeated."""

from pathlib import Path

import pytest

from theon.errors import InputError
from theon.intake.kafka_client import check
from theon.intake.kafka_properties import properties
from theon.settings import Settings

SECRET = "geheim"  # noqa: S105 - for a test
SIGNED_IN = "security.protocol=SASL_SSL\nsasl.mechanism=PLAIN\nsasl.username=theon\n"
REFUSED = {
    "an unknown name": (f"sasl.pasword={SECRET}\nsecurity.protocol=SASL_SSL", '"sasl.pasword"'),
    "an unknown value": ("security.protocol=TLS", "security.protocol"),
    "a value of the wrong kind": ("socket.timeout.ms=soon", "socket.timeout.ms"),
    "no equals sign": (f"sasl.password {SECRET}", "line 1: a line without `=`"),
    "the same twice": ("linger.ms=1\nlinger.ms=2", "line 2: linger.ms is there twice"),
    "what offsets rest on": ("isolation.level=read_uncommitted", "Theon's to set"),
    "what the program calls": ("error_cb=print", "Theon's to set"),
    "the brokers": ("bootstrap.servers=kafka-1:9092", "KAFKA_BROKERS"),
    "the group": ("group.id=other", "KAFKA_GROUP_ID"),
    "weaker delivery": ("acks=1", "acks"),
    "Java's way to sign in": (f'sasl.jaas.config=Login password="{SECRET}";', "plaintext"),
    "Java's way to sign in, encrypted": (
        f'security.protocol=SASL_SSL\nsasl.jaas.config=Login password="{SECRET}";',
        "JAAS configuration is not supported",
    ),
    "Java's store": (
        "security.protocol=SSL\nssl.truststore.location=/etc/kafka.jks",
        "ssl.ca.location",
    ),
    "a password that nobody would ask for": (f"sasl.password={SECRET}", "security.protocol"),
    "half a login": (SIGNED_IN, "sasl.username and sasl.password must be set"),
    "an authority that is not there": (
        "security.protocol=SSL\nssl.ca.location=/no/such.pem",
        "line 2: ssl.ca.location: /no/such.pem cannot be read",
    ),
    "a key that is none": (f"security.protocol=SSL\nssl.key.pem={SECRET}", "key is PEM"),
    "no provider": ("security.protocol=SASL_SSL\nsasl.mechanism=GSSAPI", "GSSAPI"),
}


def configured(folder: Path, text: str) -> Settings:
    file = folder / "kafka.properties"
    file.write_text(text, encoding="utf-8")
    return Settings(home=folder, kafka_brokers="127.0.0.1:1", kafka_properties=file)


@pytest.mark.parametrize("case", REFUSED)
def test_a_line_that_cannot_be_meant_ends_the_start(tmp_path: Path, case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(InputError) as refused:
        check(configured(tmp_path, text))
    assert words in refused.value.message
    assert "kafka.properties" in refused.value.where
    assert refused.value.next_step
    assert SECRET not in refused.value.message


def test_values_are_taken_as_they_stand(tmp_path: Path) -> None:
    """Signs that mean something elsewhere mean nothing here; a mark of Windows is none of it."""
    text = f'\ufeff# who\n{SIGNED_IN}\n sasl.password = a=b #c "d" \\n\n'
    settings = configured(tmp_path, text)
    assert properties(settings)["sasl.password"] == 'a=b #c "d" \\n'
    check(settings)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = Settings(kafka_brokers="127.0.0.1:1", kafka_properties=tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read: No such file") as refused:
        properties(settings)
    assert str(tmp_path / "none") in refused.value.where
