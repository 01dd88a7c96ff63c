"""Why Kafka's brokers cannot be used, for a person: what happened, where, what to do next."""

import re
from collections.abc import Collection

from confluent_kafka import KafkaError, KafkaException

from theon.errors import TheonError, UnavailableError
from theon.intake import kafka_tls
from theon.intake.kafka_properties import place, properties, reason, security_protocol
from theon.settings import Settings

AGAIN = "and start Theon again."
BY_ITSELF = "Theon goes on by itself then."

_UNTOLD = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE)
_RIGHTS = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
)
# What a client may say of its own accord that the brokers themselves can tell more of.
OF_THE_BROKERS = (
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError._RESOLVE,
    *_RIGHTS,
)
# sasl_ssl://kafka-1:9093/bootstrap: what happened (after 5ms in state SSL_HANDSHAKE)
_OF_A_BROKER = re.compile(r"^(?:\w+://)?(?P<broker>\S+:\d+)/\w+: (?P<said>.*?)(?: \(after .*\))?$")
_ALERT = re.compile(r"alert (?P<alert>[a-z ]+): SSL alert")


class RefusedError(UnavailableError):
    """The brokers are there and do not let Theon do what it has to do, until a person mends it."""


class Heard:
    """What a client of Kafka said of its connections: its `error_cb`.

    Brokers that refuse a client are tried again and again, and the question that waits for them
    ends with no more than that time is up. So what is heard meanwhile is kept, and explains it.
    """

    def __init__(self, settings: Settings) -> None:
        """Nothing was heard yet."""
        self._settings = settings
        self._last: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        """Keep it, unless it only says that nothing works."""
        if error.code() not in (*_UNTOLD, *_RIGHTS):
            self._last = error

    @property
    def refusal(self) -> bool:
        """Whether the last that was heard needs a person: a password, a certificate."""
        return self._last is not None and (
            self._last.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)
            or "SSL" in self._last.str()
        )

    def forget(self) -> None:
        """A broker answered."""
        self._last = None

    def explain(self, error: KafkaException | KafkaError, doing: str = "that") -> UnavailableError:
        """The error for a person.

        Args:
            error: that ended the question.
            doing: what for, such as "make topics".
        """
        ended = error.args[0] if isinstance(error, KafkaException) else error
        if isinstance(ended, KafkaError) and ended.code() in _RIGHTS:
            return no_right(self._settings, doing)
        told = self._last or (ended if isinstance(ended, KafkaError) else None)
        found = _OF_A_BROKER.match(told.str()) if told is not None else None
        brokers = self._settings.kafka_brokers or ""
        broker = found["broker"] if found else brokers.split(",")[0]
        said = found["said"] if found else reason(error)
        if told is not None and told.code() == KafkaError._AUTHENTICATION:
            return RefusedError(
                f"the broker does not let Theon in: {said}",
                where=broker,
                next_step="Check sasl.mechanism, sasl.username and sasl.password in "
                f"{place(self._settings)} {AGAIN}",
            )
        if told is not None and told.code() == KafkaError._RESOLVE:
            return UnavailableError(
                f"Kafka does not answer: {said}",
                where=broker,
                next_step="Check that KAFKA_BROKERS names machines that are known here.",
            )
        return self._of_tls(broker, said) or UnavailableError(
            f"Kafka does not answer: {said}",
            where=broker if found else brokers,
            next_step="Check that the brokers run, that KAFKA_BROKERS names them and that "
            "security.protocol is that of their listeners.",
        )

    def _of_tls(self, broker: str, said: str) -> RefusedError | None:
        given = properties(self._settings)
        host, _, port = broker.rpartition(":")
        file = place(self._settings)
        alert = _ALERT.search(said)
        if alert is None:
            wrong = kafka_tls.look(host.strip("[]"), int(port), given, security_protocol(given))
            if wrong is None and "SSL" in said:
                wrong = said, f"Check what begins with `ssl.` in {file} {AGAIN}"
        elif any(name in given for name in _OWN_CERTIFICATE):
            wrong = (
                f"the broker does not accept Theon's certificate: {alert['alert']}",
                "Check that it has not expired and that an authority of the broker signed it;"
                f" ssl.certificate.location in {file} names it. Then start Theon again.",
            )
        else:
            wrong = (
                f"the broker wants a certificate of Theon: {alert['alert']}",
                f"Set ssl.certificate.location and ssl.key.location in {file} {AGAIN}",
            )
        return None if wrong is None else RefusedError(wrong[0], where=broker, next_step=wrong[1])


_OWN_CERTIFICATE = ("ssl.certificate.location", "ssl.certificate.pem", "ssl.keystore.location")


def no_right(settings: Settings, doing: str) -> RefusedError:
    """Theon's user at the brokers may not do something, such as "read the topic user-events"."""
    return RefusedError(
        f"Theon's user has no right to {doing}",
        where=f"Kafka at {settings.kafka_brokers}",
        next_step=f"Give it that right (the guide to Kafka lists all of them). {BY_ITSELF}",
    )


def missing_rights(
    settings: Settings,
    *,
    unread: Collection[str] = (),
    unwritten: Collection[str] = (),
    may_join: bool = True,
) -> RefusedError | None:
    """What Theon's user has no right to, of what Theon does; None if nothing.

    Args:
        settings: name the brokers and the group.
        unread: topics that it may not read.
        unwritten: topics that it may not write to.
        may_join: whether it may read as a member of the group.
    """
    doings = []
    if not may_join:
        doings.append(f"read as a member of the group {settings.kafka_group_id}")
    if unread:
        doings.append(f"read {topics_named(unread)}")
    if unwritten:
        doings.append(f"write to {topics_named(unwritten)}")
    return no_right(settings, ", nor to ".join(doings)) if doings else None


def topics_named(topics: Collection[str]) -> str:
    """'the topic a', 'the topics a and b'."""
    names = sorted(topics)
    if len(names) == 1:
        return f"the topic {names[0]}"
    return f"the topics {', '.join(names[:-1])} and {names[-1]}"


def in_one_line(error: TheonError) -> str:
    """All three parts as sentences, for where lines are short of room."""
    head, _, rest = error.message.partition("\n")
    return f"{head}. {rest}" if rest else head
