"""The properties of Kafka's client: from the settings and the file that they name, checked."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from theon.errors import InputError
from theon.settings import Settings

VARIABLE = "THEON_KAFKA_PROPERTIES"

T = TypeVar("T")

_log = logging.getLogger(__name__)
_ELSEWHERE = {
    "bootstrap.servers": "KAFKA_BROKERS",
    "metadata.broker.list": "KAFKA_BROKERS",
    "client.id": "KAFKA_CLIENT_ID",
    "group.id": "KAFKA_GROUP_ID",
}
_OURS = {
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "enable.idempotence",
    "isolation.level",
    "group.protocol",
    "partition.assignment.strategy",
    "transactional.id",
    "default.topic.config",
    "on_commit",
    "on_delivery",
    "logger",
}
_FILES = (
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
)


def properties(settings: Settings) -> dict[str, Any]:
    """What every client of Theon is configured with.

    Raises:
        InputError: KAFKA_BROKERS is not set, or the file of properties cannot be read or has a
            line that cannot be meant.
    """
    if settings.kafka_brokers is None:
        raise InputError(
            "no Kafka is named",
            where="KAFKA_BROKERS",
            next_step="Set it to the brokers, such as KAFKA_BROKERS=127.0.0.1:9092.",
        )
    return {
        "log_level": 2,  # what goes wrong is told in our words, once
        # A topic that is made, deleted or given more partitions is noticed in this time.
        "topic.metadata.refresh.interval.ms": 10_000,
        "reconnect.backoff.max.ms": 2_000,
        **(_from_file(settings.kafka_properties) if settings.kafka_properties else {}),
        "bootstrap.servers": settings.kafka_brokers.replace(" ", ""),
        "client.id": settings.kafka_client_id,
    }


def place(settings: Settings) -> str:
    """Where the properties come from, for messages."""
    return f"{VARIABLE} ({settings.kafka_properties})" if settings.kafka_properties else VARIABLE


def security_protocol(given: Mapping[str, Any]) -> str:
    """plaintext, ssl, sasl_plaintext or sasl_ssl."""
    return str(given.get("security.protocol", "plaintext")).lower()


def open_client(kind: Callable[..., T], settings: Settings, configuration: dict[str, Any]) -> T:
    """A client of a kind.

    Raises:
        InputError: a property does not fit; its value is not shown.
    """
    try:
        return kind(configuration, logger=_log)
    except (KafkaException, TypeError, ValueError, AttributeError) as error:
        why = reason(error) if isinstance(error, KafkaException) else str(error)
        raise InputError(
            f"a property of Kafka's client does not fit: {why.strip()}",
            where=place(settings),
            next_step="Check that the key is PEM, and that ssl.key.password opens it."
            if "ssl.key" in why
            else "Names and values are those of librdkafka's CONFIGURATION.md.",
        ) from error


def reason(error: KafkaException | KafkaError) -> str:
    """What went wrong, in Kafka's words."""
    found = error.args[0] if isinstance(error, KafkaException) else error
    return f"{found.name()}: {found.str()}" if isinstance(found, KafkaError) else str(found)


def _from_file(path: Path) -> dict[str, str]:
    where = f"{VARIABLE} ({path})"
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"the file cannot be read: {why}",
            where=where,
            next_step="Point it to a text file of `name=value` lines.",
        ) from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not name or name.startswith("#"):
            continue
        # A line without `=` may be a secret that stands in the wrong place: it is not repeated.
        wrong = _wrong(name, value, known=name in found) if equals else _NO_EQUALS
        if wrong is not None:
            raise InputError(wrong[0], where=f"{where}, line {number}", next_step=wrong[1])
        found[name] = value
    unused = sorted(name for name in found if name.startswith(("sasl.", "ssl.")))
    if unused and security_protocol(found) == "plaintext":
        raise InputError(
            f"{unused[0]} is set, but nothing would be encrypted and nobody signed in:"
            " security.protocol is plaintext",
            where=where,
            next_step="Add security.protocol=SASL_SSL or SSL, or take those lines out.",
        )
    return found


_NO_EQUALS = ("a line without `=`", "Write `name=value`.")


def _wrong(name: str, value: str, *, known: bool) -> tuple[str, str] | None:
    """What is wrong with a line, and what to do."""
    if name in _ELSEWHERE:
        return (
            f"{name} is set by {_ELSEWHERE[name]}",
            f"Take the line out and set {_ELSEWHERE[name]}.",
        )
    if name in _OURS or name.endswith("_cb"):
        return f"{name!r} is Theon's to set: its offsets rest on it", "Take the line out."
    if known:
        return f"{name} is there twice", "Take one of the lines out."
    if name in _FILES and value != "probe":
        try:
            path = Path(value)
            if path.is_file():
                path.open("rb").close()
            elif not (name == "ssl.ca.location" and path.is_dir()):
                raise FileNotFoundError
        except OSError as error:
            why = error.strerror or "no such file"
            return (
                f"{name}: {value} cannot be read: {why}",
                "Name a file that the user who runs Theon may read.",
            )
    return None
