"""A private real Kafka, one node in KRaft mode: it can be stopped, killed, frozen and restarted."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)

from theon.errors import UnavailableError

START_S = 60.0
SERVICES = Path(__file__).resolve().parents[1] / "tools" / "services"
# For a broker of a minute: a small heap, and no compiler that takes the cores from others.
QUICK = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def kafka_jars() -> Path:
    """The folder of the jars that `tools/services install kafka` brought.

    Raises:
        UnavailableError: they, or Java, are not there.
    """
    found = re.search(r"^KAFKA_VERSION=(\S+)$", SERVICES.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jars = cache / "theon" / f"kafka-{found[1]}" / "libs"
    if not jars.is_dir() or shutil.which("java") is None:
        raise UnavailableError(
            "Kafka or Java is not installed",
            where=str(jars),
            next_step="tools/services install kafka",
        )
    return jars


class KafkaBroker:
    """A broker on free ports of this machine, with its data in a temporary folder."""

    def __init__(self, *, java: tuple[str, ...] = QUICK) -> None:
        """Write its configuration; nothing runs before `start`.

        Raises:
            UnavailableError: Kafka or Java is not installed.
        """
        self._java = ["java", *java, "-cp", f"{kafka_jars()}/*"]
        self.folder = Path(tempfile.mkdtemp(prefix="theon-kafka-"))
        self.port, controller = _free_ports()
        self._properties = self.folder / "server.properties"
        self._properties.write_text(
            "process.roles=broker,controller\n"
            "node.id=1\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\n"
            f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}\n"
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}\n"
            "controller.listener.names=CONTROLLER\n"
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
            f"log.dirs={self.folder / 'data'}\n"
            "offsets.topic.replication.factor=1\n"
            "offsets.topic.num.partitions=1\n"
            "transaction.state.log.replication.factor=1\n"
            "transaction.state.log.min.isr=1\n"
            "share.coordinator.state.topic.replication.factor=1\n"
            "share.coordinator.state.topic.min.isr=1\n"
            "group.initial.rebalance.delay.ms=0\n"
            "group.min.session.timeout.ms=1000\n"
            "auto.create.topics.enable=false\n"
            # After a kill the new one waits until the old one counts as gone.
            "broker.heartbeat.interval.ms=300\n"
            "broker.session.timeout.ms=1500\n"
            "log.retention.check.interval.ms=1000\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._formatted = False

    @property
    def brokers(self) -> str:
        """What KAFKA_BROKERS has to say."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the running broker."""
        return None if self._process is None else self._process.pid

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> None:
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)
        admin = self.admin()  # one that is forgotten gives up what it has begun
        for done in admin.create_topics([topic]).values():
            done.result(START_S)

    def topics(self) -> set[str]:
        return set(self.admin().list_topics(timeout=START_S).topics)

    def delete_topic(self, name: str) -> None:
        admin = self.admin()
        for done in admin.delete_topics([name], operation_timeout=START_S).values():
            done.result(START_S)

    def configure_topic(self, name: str, **config: str) -> None:
        admin = self.admin()
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
        for done in admin.incremental_alter_configs([resource]).values():
            done.result(START_S)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            if not self._formatted:
                # The first byte is zero, for an id that begins with a dash is read as an option.
                cluster = urlsafe_b64encode(bytes(1) + uuid.uuid4().bytes[1:]).decode().rstrip("=")
                format_ = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c"]
                subprocess.run(
                    [*self._java, *format_, str(self._properties)],
                    stdout=log,
                    stderr=log,
                    check=True,
                )
                self._formatted = True
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._properties)], stdout=log, stderr=log
            )
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            try:
                self.admin().list_topics(timeout=1)
                return
            except KafkaException:
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)
        said = (self.folder / "server.log").read_text(errors="replace")[-2000:]
        raise AssertionError(f"Kafka did not answer on port {self.port}:\n{said}")

    def stop(self) -> None:
        """End it in order; its data stays."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Connections stay open and nothing answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # one that is frozen must hear it
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(START_S)

    def __enter__(self) -> "KafkaBroker":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End it and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(two.getsockname()[1])
