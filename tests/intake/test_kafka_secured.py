"""Kafka with TLS, passwords and rights: it works, or it is said why not and what to do."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, ResourceType
from kafka_helpers import consuming, counts, ids, native, read_to, send, wait_for
from tests.kafka_certificates import Authority
from tests.kafka_secured import PASSWORD, SecuredBroker

from theon.api.app import check_health
from theon.errors import UnavailableError
from theon.intake.kafka_client import PUBLISHED
from theon.intake.kafka_publisher import KafkaPublisher
from theon.intake.kafka_refusals import RefusedError
from theon.intake.kafka_status import read_status
from theon.roster.campuses import get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.outbox import REPORT_GENERATED, announce, waiting
from theon.store.scope import Scope

pytestmark = pytest.mark.service

WRONG = "not-the-password"
TOPIC, GROUP = ResourceType.TOPIC, ResourceType.GROUP
READ, WRITE = AclOperation.READ, AclOperation.WRITE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def kafka(folder: Path) -> Iterator[SecuredBroker]:
    try:
        broker = SecuredBroker(folder)
    except UnavailableError as error:
        pytest.skip(str(error))
    with broker:
        broker.add_scram_user("theon")
        broker.add_scram_user("nobody")
        broker.create_topic(PUBLISHED)
        yield broker


@dataclass(frozen=True)
class Way:
    """How Theon comes in, and as whom."""

    door: str
    user: str
    properties: Mapping[str, str]


@pytest.fixture(scope="module")
def ways(kafka: SecuredBroker) -> dict[str, Way]:
    ca = {"ssl.ca.location": str(kafka.authority.file)}
    signed_in = {
        "security.protocol": "SASL_SSL",
        **ca,
        "sasl.username": "theon",
        "sasl.password": PASSWORD,
    }
    certified = {
        "security.protocol": "SSL",
        **ca,
        "ssl.certificate.location": str(kafka.client.chain),
        "ssl.key.location": str(kafka.client.key),
        "ssl.key.password": PASSWORD,
    }
    return {
        "SCRAM": Way("SASL", "theon", {**signed_in, "sasl.mechanism": "SCRAM-SHA-512"}),
        "PLAIN": Way("SASL", "theon", {**signed_in, "sasl.mechanism": "PLAIN"}),
        "certificate": Way("MUTUAL", "CN=client", certified),
    }


Configure = Callable[..., Settings]


@pytest.fixture
def configure(kafka: SecuredBroker, settings: Settings, lincoln: str, tmp_path: Path) -> Configure:
    """Settings that come in by a door with properties, in a group of their own."""

    def made(door: str, properties: Mapping[str, str]) -> Settings:
        file = tmp_path / f"{uuid.uuid4().hex}.properties"
        more = {"topic.metadata.refresh.interval.ms": "500", **properties}
        file.write_text("".join(f"{name} = {value}\n" for name, value in more.items()))
        return settings.model_copy(
            update={
                "kafka_brokers": kafka.door(door),
                "kafka_properties": file,
                "kafka_group_id": f"group-{file.stem}",
                "kafka_campus": lincoln,
            }
        )

    return made


@pytest.fixture
def topic(kafka: SecuredBroker) -> str:
    name = f"user-events-{uuid.uuid4().hex[:8]}"
    kafka.create_topic(name, 2)
    return name


def give(kafka: SecuredBroker, user: str, topic: str, settings: Settings) -> list[AclBinding]:
    """All the rights that the guide lists."""
    return [
        *kafka.allow(user, TOPIC, topic, READ),
        *kafka.allow(user, GROUP, settings.kafka_group_id, READ),
        *kafka.allow(user, TOPIC, PUBLISHED, WRITE),
    ]


def tell(store: Store) -> None:
    """Something that is to be published."""
    with store.transaction(Scope("lincoln")) as conn:
        announce(conn, get_campus(store, "lincoln").id, REPORT_GENERATED, {"report": 1})


@pytest.mark.parametrize("how", ["SCRAM", "PLAIN", "certificate"])
def test_theon_reads_and_publishes_with_tls_and_no_more_than_its_rights(
    kafka: SecuredBroker,
    store: Store,
    configure: Configure,
    topic: str,
    ways: dict[str, Way],
    how: str,
) -> None:
    way = ways[how]
    configured = configure(way.door, way.properties)
    rights = give(kafka, way.user, topic, configured)
    send(kafka, topic, [native(number) for number in range(10)])
    tell(store)
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 10)
        assert KafkaPublisher(store, configured).publish() == 1
        found = read_status(store, configured, (topic,))
    assert (found.lag, found.trouble, found.missing, len(found.members)) == (0, None, [], 1)
    assert len(ids(store)) == 10
    kafka.forbid(rights)


def test_each_way_to_be_refused_is_told_in_its_own_words(
    kafka: SecuredBroker,
    store: Store,
    configure: Configure,
    ways: dict[str, Way],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What, which broker, which property to look at; and never a password."""
    monkeypatch.setattr("theon.intake.kafka_client.LOOK_S", 1.5)
    # What is told ends the wait, so that there is patience on a busy machine.
    monkeypatch.setattr("theon.intake.kafka_client.ANSWER_S", 30.0)
    monkeypatch.setattr("theon.intake.kafka_tls.LOOK_S", 20.0)
    scram, certified = ways["SCRAM"].properties, ways["certificate"].properties
    tls = {name: certified[name] for name in ("security.protocol", "ssl.ca.location")}
    other = Authority(folder, "other")
    stranger = other.sign("stranger")
    late = kafka.authority.sign("late", lasts=timedelta(days=-1))
    cases = {
        "a wrong password": (
            ("SASL", {**scram, "sasl.password": WRONG}),
            ("does not let Theon in", "invalid credentials", "sasl.password"),
        ),
        "a wrong password, PLAIN": (
            ("SASL", {**ways["PLAIN"].properties, "sasl.password": WRONG}),
            ("does not let Theon in", "Invalid username or password", "sasl.password"),
        ),
        "a mechanism that the broker has not": (
            ("SASL", {**scram, "sasl.mechanism": "SCRAM-SHA-256"}),
            ("does not let Theon in", "PLAIN,SCRAM-SHA-512", "sasl.mechanism"),
        ),
        "another authority": (
            ("SASL", {**scram, "ssl.ca.location": str(other.file)}),
            ("certificate is not accepted", "unable to get local issuer", "ssl.ca.location"),
        ),
        "no authority": (
            ("SASL", {n: v for n, v in scram.items() if n != "ssl.ca.location"}),
            ("certificate is not accepted", "issuer", "ssl.ca.location"),
        ),
        "a certificate for another host": (
            ("ELSEWHERE", tls),
            ("certificate is not accepted", "not valid for '127.0.0.1'", "KAFKA_BROKERS"),
        ),
        "an expired certificate": (
            ("EXPIRED", tls),
            ("certificate is not accepted", "expired", "Give the broker a valid one"),
        ),
        "no certificate of one's own": (
            ("MUTUAL", tls),
            ("wants a certificate", "bad certificate", "ssl.certificate.location"),
        ),
        "a stranger's certificate": (
            (
                "MUTUAL",
                {
                    **tls,
                    "ssl.certificate.location": str(stranger.chain),
                    "ssl.key.location": str(stranger.key),
                },
            ),
            ("does not accept Theon's certificate", "an authority of the broker signed it"),
        ),
        "an expired certificate of one's own": (
            (
                "MUTUAL",
                {
                    **tls,
                    "ssl.certificate.location": str(late.chain),
                    "ssl.key.location": str(late.key),
                },
            ),
            ("does not accept Theon's certificate", "has not expired"),
        ),
        "no TLS where TLS is spoken": (("SASL", {}), ("speaks TLS there", "security.protocol")),
        "TLS where none is spoken": (("OPEN", tls), ("does not speak TLS", "KAFKA_BROKERS")),
    }
    settings = {name: configure(*how) for name, (how, _) in cases.items()}

    def refusal(name: str) -> str:
        with pytest.raises(RefusedError) as refused:
            read_status(store, settings[name])
        assert refused.value.where == settings[name].kafka_brokers
        assert refused.value.next_step
        return refused.value.message

    with ThreadPoolExecutor(len(cases)) as threads:
        said = dict(zip(cases, threads.map(refusal, cases), strict=True))
    for name, (_, words) in cases.items():
        assert [word for word in words if word not in said[name]] == [], (name, said[name])
        assert PASSWORD not in said[name]
        assert WRONG not in said[name]


def test_a_consumer_that_is_not_let_in_says_so_wherever_one_looks(
    store: Store, configure: Configure, ways: dict[str, Way], caplog: pytest.LogCaptureFixture
) -> None:
    configured = configure("SASL", {**ways["SCRAM"].properties, "sasl.password": WRONG})
    tell(store)
    with caplog.at_level(logging.DEBUG), consuming(store, configured, "user-events") as consumer:
        wait_for(lambda: consumer.state == "refused")
        wait_for(lambda: "does not let" in str(check_health(store, configured).what))
        health = check_health(store, configured)
        publisher = KafkaPublisher(store, configured)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("theon.intake.kafka_publisher.DELIVERY_S", 5.0)
            with pytest.raises(UnavailableError) as kept:
                publisher.publish()
    assert (health.status, health.consumer) == ("fail", "fail")
    for said in (health.what, kept.value.message, caplog.text):
        assert "does not let Theon in" in str(said)
        assert "Check sasl.mechanism, sasl.username and sasl.password" in str(said)
        assert WRONG not in str(said)
    assert caplog.text.count("does not let Theon in") == 1


def test_rights_that_are_missing_are_named_and_given_ones_are_used_at_once(
    kafka: SecuredBroker,
    store: Store,
    configure: Configure,
    topic: str,
    ways: dict[str, Way],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without being started again, and each message counts once."""
    monkeypatch.setattr("theon.intake.kafka_consumer.CARE_S", 0.3)
    configured = configure("SASL", {**ways["SCRAM"].properties, "sasl.username": "nobody"})
    send(kafka, topic, [native(number) for number in range(10)])
    tell(store)
    with consuming(store, configured, topic) as consumer:

        def said(words: str) -> bool:
            return consumer.state == "refused" and words in (consumer.error or "")

        group = f"read as a member of the group {configured.kafka_group_id}"
        wait_for(lambda: said(f"no right to {group}, nor to read the topic {topic}."))
        found = read_status(store, configured, (topic,))
        lacking = f"{group}, nor to read the topic {topic}, nor to write to the topic {PUBLISHED}."
        assert f"Theon's user has no right to {lacking}" in str(found.trouble)
        assert (found.missing, found.group_state) == ([], "not shown to Theon's user")
        assert "no right to" in str(check_health(store, configured).what)
        kafka.allow("nobody", GROUP, configured.kafka_group_id, READ)
        wait_for(lambda: said(f"no right to read the topic {topic}"))
        reading = kafka.allow("nobody", TOPIC, topic, READ)
        wait_for(lambda: read_to(store, configured) == 10)
        wait_for(lambda: consumer.state == "listening")
        kafka.forbid(reading)
        wait_for(lambda: said(f"no right to read the topic {topic}"))
        send(kafka, topic, [native(number) for number in range(10, 20)])
        kafka.allow("nobody", TOPIC, topic, READ)
        wait_for(lambda: read_to(store, configured) == 20)
        wait_for(lambda: consumer.state == "listening")
    assert counts(store) == (20, 20, 0, 0)
    publisher = KafkaPublisher(store, configured)
    with pytest.raises(UnavailableError, match=f"no right to write to the topic {PUBLISHED}"):
        publisher.publish()
    kafka.allow("nobody", TOPIC, PUBLISHED, WRITE)
    assert publisher.publish() == 1
    with store.transaction(Scope.district()) as conn:
        assert waiting(conn)[0] == 0
