"""`theon kafka …` beside a real broker."""

import json
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer
from tests.kafka_broker import KafkaBroker

from theon.errors import UnavailableError

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    try:
        broker = KafkaBroker()
    except UnavailableError as error:
        pytest.skip(str(error))
    with broker:
        yield broker


def test_topics_are_made_once_and_status_shows_them(theon, broker):
    env = {"KAFKA_BROKERS": broker.brokers}
    made = theon("kafka", "topics", "create", "--partitions", "2", env=env)
    assert made.returncode == 0, made.stderr
    wanted = ["analytics-events", "assessment-events", "course-events", "user-events"]
    assert sorted(made.stdout.split()) == wanted
    again = theon("kafka", "topics", "create", env=env)
    assert (again.returncode, again.stdout) == (0, "")
    producer = Producer({"bootstrap.servers": broker.brokers})
    producer.produce("user-events", value=b"{}", partition=1)
    assert producer.flush(120) == 0
    shown = theon("kafka", "status", env=env)
    assert shown.returncode == 0, shown.stderr
    assert "user-events\t1\t0\t1\t-\t1\t-" in shown.stdout.splitlines()
    found = json.loads(theon("kafka", "status", "--json", env=env).stdout)
    assert (found["lag"], found["missing"], len(found["partitions"])) == (1, [], 6)


def test_what_was_never_read_is_not_rewound(theon, broker):
    done = theon("kafka", "rewind", "user-events", env={"KAFKA_BROKERS": broker.brokers})
    assert done.returncode == 2
    assert "never read by this group" in done.stderr


@pytest.mark.parametrize("command", ["consume", "status"])
def test_without_brokers_it_says_which_variable_is_missing(theon, command):
    done = theon("kafka", command)
    assert done.returncode == 2
    assert "KAFKA_BROKERS" in done.stderr


def test_a_default_campus_that_does_not_exist_is_told_at_the_start(theon, broker):
    env = {"KAFKA_BROKERS": broker.brokers, "THEON_KAFKA_CAMPUS": "nowhere"}
    done = theon("kafka", "consume", env=env)
    assert done.returncode == 2
    assert "there is no campus 'nowhere'" in done.stderr
