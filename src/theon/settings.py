"""Every setting, from the environment, validated once at start."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from theon.errors import InputError

SLOT_S = 900


class Settings(BaseSettings):
    """Theon's settings. Each comes from the environment variable named as its alias."""

    model_config = SettingsConfigDict(
        extra="ignore",
        populate_by_name=True,
        case_sensitive=True,  # or the field `home` would take $HOME, and `host` $HOST
        env_ignore_empty=True,  # as `KAFKA_BROKERS: ${KAFKA_BROKERS:-}` in a compose file leaves it
    )

    home: Annotated[
        Path,
        Field(
            validation_alias=AliasChoices("THEON_HOME", "home"),
            description="Folder that holds all data: lake, embedded PostgreSQL, rejects.",
        ),
    ] = Path("~/.theon")
    postgres_url: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices("POSTGRES_URL", "postgres_url"),
            description="A PostgreSQL 15 or newer to use instead of the embedded one; its user "
            "must be able to create roles and schemas.",
        ),
    ] = None
    postgres_app_url: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices("POSTGRES_APP_URL", "postgres_app_url"),
            description="The same database for the application's own user, where the user of "
            "POSTGRES_URL may not create roles; neither superuser nor owner.",
        ),
    ] = None
    port: Annotated[
        int,
        Field(
            ge=1,
            le=65535,
            validation_alias=AliasChoices("PORT", "port"),
            description="TCP port of the pages and the API.",
        ),
    ] = 3007
    host: Annotated[
        str,
        Field(
            validation_alias=AliasChoices("THEON_HOST", "host"),
            description="Address to listen on; loopback unless set. The overview page asks nobody "
            "to sign in.",
        ),
    ] = "127.0.0.1"
    session_limit_s: Annotated[
        int,
        Field(
            ge=SLOT_S,
            le=24 * 3600,
            validation_alias=AliasChoices("THEON_SESSION_LIMIT_S", "session_limit_s"),
            description="Seconds: a gap between two events of a learner in a course counts as "
            "time spent up to this length. 15 minutes or more.",
        ),
    ] = 1800
    engine_memory_mb: Annotated[
        int,
        Field(
            ge=200,
            validation_alias=AliasChoices("THEON_ENGINE_MEMORY_MB", "engine_memory_mb"),
            description="Megabytes the metric engine may hold before it spills to disk.",
        ),
    ] = 512
    engine_threads: Annotated[
        int,
        Field(
            ge=0,
            validation_alias=AliasChoices("THEON_ENGINE_THREADS", "engine_threads"),
            description="Threads of the metric engine; 0 takes one per core.",
        ),
    ] = 0

    moodle_reread_ids: Annotated[
        int,
        Field(
            ge=0,
            validation_alias=AliasChoices("THEON_MOODLE_REREAD_IDS", "moodle_reread_ids"),
            description="Log ids that each reading of a Moodle database goes back: a long "
            "transaction may show a lower id after a higher one. Known events do not count twice.",
        ),
    ] = 20_000

    real_time_analytics: Annotated[
        bool,
        Field(
            validation_alias=AliasChoices("ENABLE_REAL_TIME_ANALYTICS", "real_time_analytics"),
            description="Whether metrics move within seconds of an event; without it they move "
            "at the next scheduled refresh.",
        ),
    ] = True
    client_events_per_minute: Annotated[
        int,
        Field(
            ge=1,
            validation_alias=AliasChoices(
                "THEON_CLIENT_EVENTS_PER_MINUTE", "client_events_per_minute"
            ),
            description="Events that one API key or account may send over HTTP in a minute; who "
            "sends more is answered 429 and when to come back.",
        ),
    ] = 3_000_000

    redis_url: Annotated[
        str | None,
        Field(
            pattern=r"^(rediss?|unix)://",
            examples=["redis://redis-1:6379/0"],
            validation_alias=AliasChoices("REDIS_URL", "redis_url"),
            description="A Redis that carries jobs to workers (`theon worker`); without it "
            "`theon serve` runs jobs itself.",
        ),
    ] = None
    kafka_brokers: Annotated[
        str | None,
        Field(
            pattern=r"^(\[[\da-fA-F:]+\]|[^\s,:/]+):\d+(,\s*(\[[\da-fA-F:]+\]|[^\s,:/]+):\d+)*$",
            examples=["kafka-1:9092,kafka-2:9092"],
            validation_alias=AliasChoices("KAFKA_BROKERS", "kafka_brokers"),
            description="Kafka brokers, host:port, separated by commas: events are read from the "
            "topics user-events, course-events and assessment-events, and what became of them is "
            "told on analytics-events.",
        ),
    ] = None
    kafka_client_id: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            validation_alias=AliasChoices("KAFKA_CLIENT_ID", "kafka_client_id"),
            description="How Theon calls itself at the brokers.",
        ),
    ] = "theon"
    kafka_group_id: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            validation_alias=AliasChoices("KAFKA_GROUP_ID", "kafka_group_id"),
            description="The consumer group. Its members share the partitions, and its offsets "
            "are in PostgreSQL: another group begins at the beginning.",
        ),
    ] = "theon"
    kafka_campus: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices("THEON_KAFKA_CAMPUS", "kafka_campus"),
            description="Slug of the campus of messages that name none; without it they are "
            "refused and kept as dead letters.",
        ),
    ] = None
    kafka_batch_events: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            validation_alias=AliasChoices("THEON_KAFKA_BATCH_EVENTS", "kafka_batch_events"),
            description="Messages that one transaction takes in at most.",
        ),
    ] = 10_000
    kafka_batch_ms: Annotated[
        int,
        Field(
            ge=1,
            le=60_000,
            validation_alias=AliasChoices("THEON_KAFKA_BATCH_MS", "kafka_batch_ms"),
            description="Milliseconds that a transaction waits for more messages at most.",
        ),
    ] = 100
    kafka_buffer_mb: Annotated[
        int,
        Field(
            ge=1,
            le=2048,
            validation_alias=AliasChoices("THEON_KAFKA_BUFFER_MB", "kafka_buffer_mb"),
            description="Megabytes of messages that a consumer may hold ahead of the database; "
            "then it reads no more until that has caught up.",
        ),
    ] = 32
    kafka_properties: Annotated[
        Path | None,
        Field(
            validation_alias=AliasChoices("THEON_KAFKA_PROPERTIES", "kafka_properties"),
            description="A file of `name=value` lines with further properties of librdkafka, "
            "such as security.protocol, sasl.username and ssl.ca.location.",
        ),
    ] = None

    worker_port: Annotated[
        int,
        Field(
            ge=1,
            le=65535,
            validation_alias=AliasChoices("WORKER_PORT", "worker_port"),
            description="TCP port of a worker's `/health`.",
        ),
    ] = 3008
    job_slots: Annotated[
        int,
        Field(
            ge=0,
            le=1024,
            validation_alias=AliasChoices("THEON_JOB_SLOTS", "job_slots"),
            description="Jobs that one process runs at the same time; 0 takes one per core.",
        ),
    ] = 0
    drain_s: Annotated[
        float,
        Field(
            ge=0,
            le=3600,
            validation_alias=AliasChoices("THEON_DRAIN_S", "drain_s"),
            description="Seconds that running jobs may go on after SIGTERM; what is not done by "
            "then goes back to the queue with its checkpoint.",
        ),
    ] = 30.0

    jwt_secret: Annotated[
        SecretStr | None,
        Field(
            validation_alias=AliasChoices("JWT_SECRET", "jwt_secret"),
            description="Secret of 32 bytes or more under which bearer tokens are signed (HS256); "
            "this or JWT_JWKS_URL, not both.",
        ),
    ] = None
    jwt_jwks_url: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices("JWT_JWKS_URL", "jwt_jwks_url"),
            description="Address of the public keys of whoever signs bearer tokens (RS256, "
            "ES256): https, or http on this machine.",
        ),
    ] = None
    jwt_audience: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices("JWT_AUDIENCE", "jwt_audience"),
            description="What the `aud` of a bearer token must name; needed with either of them.",
        ),
    ] = None
    jwt_issuer: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices("JWT_ISSUER", "jwt_issuer"),
            description="What the `iss` of a bearer token must be; needed with either of them.",
        ),
    ] = None
    session_hours: Annotated[
        int,
        Field(
            ge=1,
            le=720,
            validation_alias=AliasChoices("THEON_SESSION_HOURS", "session_hours"),
            description="Hours after which a session ends and its owner signs in again; two "
            "hours without a request end it as well.",
        ),
    ] = 12

    @property
    def home_dir(self) -> Path:
        """`home` as an absolute path, with `~` expanded."""
        return self.home.expanduser().resolve()


def _fault(error: dict[str, Any]) -> str:
    """What is wrong with one variable; a pattern is for machines, so a person sees an example."""
    variable, what = error["loc"][0], error["msg"]
    for field in Settings.model_fields.values():
        names = field.validation_alias
        named = isinstance(names, AliasChoices) and variable in names.choices
        if named and field.examples and error["type"] == "string_pattern_mismatch":
            what = f"should look like {field.examples[0]}"
    return f"{variable}: {what} (is {_shown(error.get('input'))!r})"


def _shown(value: object) -> object:
    """A value as it may be repeated: of `user:password@host` the host alone."""
    return re.sub(r"[^\s,/]*@", "…@", value) if isinstance(value, str) else value


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        InputError: a variable has a value that does not fit; says which and why.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"  {_fault(dict(one))}" for one in error.errors()]
        raise InputError(
            "settings do not fit:\n" + "\n".join(lines),
            where="environment",
            next_step="Change or unset these variables; docs/settings.md lists them all.",
        ) from error
