"""A campus, a lake of its own for each test, small Moodle logs, and real Moodle databases."""

import gzip
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pymysql
import pytest
from moodle_logs import Mariadb
from sqlalchemy import URL
from tests.kafka_broker import KafkaBroker

from theon.errors import UnavailableError
from theon.intake.pipeline import ingest
from theon.intake.runs import IngestSummary
from theon.lake.table import EventLake
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.secrets import make_secret


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a THEON_HOME of this test."""
    return Settings(home=tmp_path / "home", engine_threads=2)


@pytest.fixture
def lake(settings: Settings) -> EventLake:
    """An empty lake."""
    return EventLake(settings)


@pytest.fixture
def lincoln(store: Store) -> str:
    """The slug of a campus in Europe/London."""
    return add_campus(store, "lincoln", "Europe/London").slug


@pytest.fixture
def take(
    store: Store, lake: EventLake, settings: Settings, lincoln: str
) -> Callable[..., IngestSummary]:
    """Ingests a location into the campus: take(location, format, course=…)."""

    def run(location: Path | str, source_format: str, **options: str) -> IngestSummary:
        return ingest(
            store,
            lake,
            settings,
            location=str(location),
            format=source_format,
            campus=lincoln,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaBroker]:
    """A real Kafka; tests that stop it start it again."""
    try:
        broker = KafkaBroker()
    except UnavailableError as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture
def topic(kafka: KafkaBroker) -> Iterator[str]:
    """A topic of this test with two partitions."""
    name = f"user-events-{uuid.uuid4().hex[:8]}"
    kafka.create_topic(name, 2)
    yield name
    kafka.delete_topic(name)


@pytest.fixture
def configured(kafka: KafkaBroker, settings: Settings, topic: str, lincoln: str) -> Settings:
    return settings.model_copy(
        update={
            "kafka_brokers": kafka.brokers,
            "kafka_group_id": f"group-{topic}",
            "kafka_campus": lincoln,
        }
    )


def _psql() -> str:
    found = shutil.which("psql")
    if found is None:
        pytest.skip("psql is not installed, so the real site cannot be restored")
    return found


@pytest.fixture(scope="session")
def superuser(shared_store: Store, store_settings: Settings) -> URL:
    """Of the embedded server that the tests of this worker share."""
    return shared_store._owner.url.set(
        drivername="postgresql",
        username="postgres",
        password=make_secret(store_settings.home_dir, "postgres-superuser"),
        database="postgres",
    )


@pytest.fixture(scope="session")
def moodle_postgres(superuser: URL, moodle_data: Path) -> Iterator[URL]:
    """The real site restored into a database beside the store's; a role that may only read."""
    name = "moodle_real"
    with psycopg.connect(_conninfo(superuser), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}")
        admin.execute(f"CREATE DATABASE {name}")
        dump = gzip.decompress((moodle_data / "moodle43_postgres.sql.gz").read_bytes())
        restored = superuser.set(database=name)
        subprocess.run(
            [_psql(), "-q", _conninfo(restored)], input=dump, check=True, capture_output=True
        )
        with psycopg.connect(_conninfo(restored)) as site:
            site.execute("DROP ROLE IF EXISTS moodle_reader")
            site.execute("CREATE ROLE moodle_reader LOGIN PASSWORD 'reads-only'")
            site.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO moodle_reader")
        yield restored.set(username="moodle_reader", password="reads-only")  # noqa: S106
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        admin.execute("DROP ROLE moodle_reader")


def _conninfo(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory, moodle_data: Path) -> Iterator[Mariadb]:
    """A private MariaDB with the real site; skips where none is installed."""
    server, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if server is None or install is None:
        pytest.skip("MariaDB is not installed")
    folder = Path("/tmp") / f"theon-mariadb-{os.getpid()}"  # noqa: S108 - sockets need short paths
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o755)
    user = ["--user=root"] if os.geteuid() == 0 else []
    common = ["--no-defaults", f"--datadir={folder}/data", *user]
    subprocess.run(
        [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True,
        capture_output=True,
    )
    socket = folder / "sock"
    process = subprocess.Popen(
        [
            server,
            *common,
            f"--socket={socket}",
            "--skip-networking",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=64M",
            f"--log-error={folder}/log",
        ]
    )
    try:
        running = Mariadb(socket)
        _wait_for(running)
        dump = gzip.decompress((moodle_data / "moodle43_mariadb.sql.gz").read_bytes())
        client = shutil.which("mariadb") or shutil.which("mysql") or "mariadb"
        with running.connect(database="mysql") as root, root.cursor() as cursor:
            cursor.execute("CREATE DATABASE moodle CHARACTER SET utf8mb4")
            cursor.execute("CREATE USER reader@localhost IDENTIFIED BY 'reads-only'")
            cursor.execute("GRANT SELECT ON moodle.* TO reader@localhost")
        subprocess.run(
            [client, "--no-defaults", f"--socket={socket}", "-uroot", "moodle"],
            input=dump,
            check=True,
            capture_output=True,
        )
        yield running
    finally:
        process.terminate()
        process.wait(120)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(server: Mariadb, limit_s: float = 200) -> None:
    end = time.monotonic() + limit_s
    while True:
        try:
            server.connect(database="mysql").close()
            return
        except pymysql.err.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
