"""A private real Kafka in KRaft mode, of one broker or several, with the listeners one wants.

It can be stopped, killed, frozen and restarted.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from hashlib import sha256
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

from tests.ports import held_port
from theon.errors import UnavailableError

START_S = 180.0
CONTROLLER = "CONTROLLER"
SERVICES = Path(__file__).resolve().parents[1] / "tools" / "services"
# For a broker of a minute: a small heap, and no compiler that takes the cores from others.
QUICK = ("-Xms96m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


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


def shared_classes(jars: Path) -> str:
    """The option by which a broker finds its classes read already, and starts in half the time.

    They are kept beside the jars, for each Java. The first to ask starts a broker to have them.
    """
    java = subprocess.run(["java", "-version"], check=True, capture_output=True).stderr
    archive = jars.parent / f"classes-{sha256(java).hexdigest()[:12]}.jsa"
    with (jars.parent / "classes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            draft = archive.with_suffix(f".{os.getpid()}")
            with KafkaBroker(java=(*QUICK, f"-XX:ArchiveClassesAtExit={draft}")) as broker:
                broker.stop()
            draft.replace(archive)
    return f"-XX:SharedArchiveFile={archive}"


@dataclass(frozen=True)
class Listener:
    """A door of a broker.

    Attributes:
        name: in capitals, such as MUTUAL.
        protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        properties: of this listener alone, named without its prefix.
    """

    name: str
    protocol: str
    properties: Mapping[str, str] = field(default_factory=dict)


OPEN = Listener("OPEN", "PLAINTEXT")


@dataclass
class _Node:
    number: int
    folder: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def properties(self) -> Path:
        return self.folder / "server.properties"


class KafkaBroker:
    """One broker or a cluster, on free ports of this machine, with data in a temporary folder.

    Every broker is a controller as well, so most of them must run.
    """

    def __init__(
        self,
        *,
        java: tuple[str, ...] | None = None,
        nodes: int = 1,
        listeners: tuple[Listener, ...] = (OPEN,),
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Write its configuration; nothing runs before `start`.

        Args:
            java: options of the Java machine; `QUICK` and shared classes unless given.
            nodes: how many brokers.
            listeners: of each; brokers talk to each other, and tests to them, by the first.
            properties: of each, beside those that it has anyway.

        Raises:
            UnavailableError: Kafka or Java is not installed.
        """
        jars = kafka_jars()
        if java is None:
            java = (*QUICK, shared_classes(jars))
        self._java = ["java", *java, "-cp", f"{jars}/*"]
        self.folder = Path(tempfile.mkdtemp(prefix="theon-kafka-"))
        self._listeners = listeners
        # The first byte is zero, for an id that begins with a dash is read as an option.
        self._id = urlsafe_b64encode(bytes(1) + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        names = [*(listener.name for listener in listeners), CONTROLLER]
        self._held = ExitStack()
        self._nodes = {
            number: _Node(
                number,
                self.folder / str(number),
                {name: self._held.enter_context(held_port()) for name in names},
            )
            for number in range(1, nodes + 1)
        }
        for node in self._nodes.values():
            node.folder.mkdir()
            lines = {**self._properties(node), **(properties or {})}
            node.properties.write_text("".join(f"{n}={v}\n" for n, v in lines.items()))

    def _properties(self, node: _Node) -> dict[str, str]:
        doors = {name: f"{name}://127.0.0.1:{port}" for name, port in node.ports.items()}
        copies = str(min(3, len(self._nodes)))
        in_sync = "2" if len(self._nodes) > 2 else "1"
        protocols = {listener.name: listener.protocol for listener in self._listeners}
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": ",".join(
                f"{n.number}@127.0.0.1:{n.ports[CONTROLLER]}" for n in self._nodes.values()
            ),
            "listeners": ",".join(doors.values()),
            "advertised.listeners": ",".join(doors[name] for name in protocols),
            "inter.broker.listener.name": self._listeners[0].name,
            "controller.listener.names": CONTROLLER,
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}"
                for name, protocol in {**protocols, CONTROLLER: "PLAINTEXT"}.items()
            ),
            "log.dirs": str(node.folder / "data"),
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "auto.create.topics.enable": "false",
            # After a kill the new one waits until the old one counts as gone.
            "broker.heartbeat.interval.ms": "300",
            "broker.session.timeout.ms": "1500",
            "log.retention.check.interval.ms": "1000",
            **{
                f"listener.name.{listener.name.lower()}.{name}": value
                for listener in self._listeners
                for name, value in listener.properties.items()
            },
        }

    @property
    def brokers(self) -> str:
        """What KAFKA_BROKERS has to say."""
        return self.door(self._listeners[0].name)

    def door(self, listener: str) -> str:
        """What KAFKA_BROKERS has to say to come in by a listener."""
        return ",".join(f"127.0.0.1:{node.ports[listener]}" for node in self._nodes.values())

    @property
    def pid(self) -> int | None:
        """Of the first broker, if it runs."""
        process = self._nodes[1].process
        return None if process is None else process.pid

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> None:
        topic = NewTopic(
            name, num_partitions=partitions, replication_factor=len(self._nodes), config=config
        )
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
        """Start what does not run and wait until each answers and knows all others."""
        begun = [node for node in self._nodes.values() if node.process is None]
        fresh = [node for node in begun if not (node.folder / "data").exists()]
        format_ = ["kafka.tools.StorageTool", "format", "-t", self._id, "-c"]
        for process in [self._run(node, *format_) for node in fresh]:
            assert process.wait(START_S) == 0
        for node in begun:
            node.process = self._run(node, "kafka.Kafka")
        until_s = time.monotonic() + START_S
        for node in begun:
            self._wait_for(node, until_s)

    def _run(self, node: _Node, *command: str) -> subprocess.Popen[bytes]:
        with (node.folder / "server.log").open("ab") as log:
            return subprocess.Popen(
                [*self._java, *command, str(node.properties)], stdout=log, stderr=log
            )

    def _wait_for(self, node: _Node, until_s: float) -> None:
        port = node.ports[self._listeners[0].name]
        own = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})
        running = {n.number for n in self._nodes.values() if n.process is not None}
        while time.monotonic() < until_s and node.process and node.process.poll() is None:
            with suppress(KafkaException):
                if running <= set(own.list_topics(timeout=5).brokers):
                    return
            time.sleep(0.1)
        said = (node.folder / "server.log").read_text(errors="replace")[-2000:]
        raise AssertionError(f"Kafka did not answer on port {port}:\n{said}")

    def stop(self, node: int | None = None) -> None:
        """End it, or one of its brokers, in order; its data stays."""
        self._end(signal.SIGTERM, node)

    def kill(self, node: int | None = None) -> None:
        """End it, or one of its brokers, at once."""
        self._end(signal.SIGKILL, node)

    def freeze(self) -> None:
        """Connections stay open and nothing answers."""
        for process in self._running():
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self._running():
            process.send_signal(signal.SIGCONT)

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [node.process for node in self._nodes.values() if node.process is not None]

    def _end(self, number: int, only: int | None) -> None:
        chosen = [n for n in self._nodes.values() if only in (None, n.number)]
        ended = [node.process for node in chosen if node.process is not None]
        for node in chosen:
            node.process = None
        for process in ended:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # one that is frozen must hear it
        for process in ended:
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
        self._held.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
