"""`theon kafka …`: read events from Kafka, see how that stands, make the topics."""

from typing import TYPE_CHECKING, Annotated

import typer

from theon import cli_common

if TYPE_CHECKING:
    from theon.intake.kafka_status import KafkaStatus

kafka_app = typer.Typer(
    help="Kafka: events from its topics, and what became of them on one of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
topics_app = typer.Typer(help="Kafka's topics.", no_args_is_help=True, rich_markup_mode=None)
kafka_app.add_typer(topics_app, name="topics")


@kafka_app.command("consume")
def consume() -> None:
    """Read events from KAFKA_BROKERS, and publish what is announced, until SIGTERM or Ctrl-C.

    Several processes, on several machines, share the partitions. `theon serve` does the same
    beside the pages.

    Example: KAFKA_BROKERS=127.0.0.1:9092 THEON_KAFKA_CAMPUS=lincoln theon kafka consume
    """
    import time  # noqa: PLC0415 - only when the command runs, as all below

    from theon.intake.kafka_pair import KafkaPair  # noqa: PLC0415
    from theon.observability.logs import log_to_stderr  # noqa: PLC0415

    log_to_stderr()
    with cli_common.open_theon() as theon:
        pair = KafkaPair(theon.store, theon.settings)
        pair.start()
        typer.secho(
            f"Reading from {theon.settings.kafka_brokers} as a member of "
            f"{theon.settings.kafka_group_id!r} (Ctrl-C ends it)",
            err=True,
            bold=True,
        )
        try:
            while pair.alive:
                time.sleep(0.5)
            raise typer.Exit(1)
        finally:
            pair.stop()


@kafka_app.command("status")
def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show how far each partition is read, who reads, what could no longer be read.

    Example: KAFKA_BROKERS=127.0.0.1:9092 theon kafka status
    """
    from dataclasses import asdict  # noqa: PLC0415

    from theon.cli_jobs import to_json  # noqa: PLC0415
    from theon.intake.kafka_status import read_status  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        found = read_status(theon.store, theon.settings)
    if as_json:
        typer.echo(to_json({**asdict(found), "lag": found.lag}))
    else:
        _show(found)


def _show(found: "KafkaStatus") -> None:
    lines = [("topic", "partition", "low", "high", "next", "lag", "last event at")]
    for p in found.partitions:
        at = "-" if p.last_event_at is None else p.last_event_at.isoformat(timespec="seconds")
        read_to = "-" if p.next_offset is None else str(p.next_offset)
        numbers = (str(p.partition), str(p.low), str(p.high), read_to, str(p.lag))
        lines.append((p.topic, *numbers, at))
    for line in lines:
        typer.echo("\t".join(line))
    typer.echo(f"group {found.group}: {found.group_state}, lag {found.lag:,}")
    for member in found.members:
        held = ", ".join(f"{topic}/{number}" for topic, number in member.partitions) or "nothing"
        typer.echo(f"member {member.client_id} on {member.host}: {held}")
    for consumer in found.consumers:
        heard = "" if consumer.alive else f"; silent for {consumer.silent_s:,.0f} s"
        why = f" ({consumer.error})" if consumer.error else ""
        typer.echo(
            f"consumer {consumer.host} {consumer.pid}: {consumer.state}{why},"
            f" {consumer.messages:,} messages{heard}"
        )
    for gap in found.gaps:
        typer.echo(f"gap {gap.id}: {gap.explanation}")
    if found.outbox:
        since = "" if found.outbox_since is None else f" since {found.outbox_since:%F %T %Z}"
        typer.echo(f"{found.outbox:,} announcements wait to be published{since}")
    if found.trouble is not None:
        typer.echo(found.trouble, err=True)
    for topic in found.missing:
        typer.echo(f"There is no topic {topic}: theon kafka topics create makes it.", err=True)


@kafka_app.command("rewind")
def rewind_partition(
    topic: Annotated[str, typer.Argument(help="Name of the topic.")],
    offset: Annotated[int, typer.Option(min=0, help="Where to read on.")] = 0,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
) -> None:
    """Read a topic again from an offset; events that are known are not counted twice.

    Running consumers notice within seconds. Partitions that were not read that far stay where
    they are.

    Example: theon kafka rewind user-events --offset 0
    """
    from theon.errors import InputError  # noqa: PLC0415
    from theon.intake.kafka_offsets import rewind, standings  # noqa: PLC0415
    from theon.store.scope import Scope  # noqa: PLC0415

    with cli_common.open_theon() as theon:
        group = theon.settings.kafka_group_id
        with theon.store.transaction(Scope.district()) as conn:
            places = [
                place
                for place in standings(conn, group)
                if place[0] == topic and partition in (None, place[1])
            ]
            if not places:
                raise InputError(
                    "it was never read by this group",
                    where=f"topic {topic}",
                    next_step="`theon kafka status` shows what was; KAFKA_GROUP_ID says the group.",
                )
            moved = [place for place in places if rewind(conn, group, place, offset)]
            if not moved:
                raise InputError(
                    f"it was not read as far as offset {offset:,}",
                    where=f"topic {topic}",
                    next_step="Reading goes back only; `theon kafka status` shows how far it is.",
                )
    for place in moved:
        typer.echo(f"{place[0]}\t{place[1]}\t{offset}")


@topics_app.command("create")
def create(
    partitions: Annotated[
        int, typer.Option(min=1, help="Partitions of each: as many consumers can share the work.")
    ] = 4,
    replicas: Annotated[int, typer.Option(min=1, help="Brokers that hold each.")] = 1,
) -> None:
    """Make those of Theon's topics that do not exist; prints what was made.

    Example: theon kafka topics create --partitions 8 --replicas 3
    """
    from confluent_kafka import KafkaException  # noqa: PLC0415

    from theon.intake import kafka_client  # noqa: PLC0415
    from theon.intake.kafka_refusals import Heard  # noqa: PLC0415
    from theon.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    heard = Heard(settings)
    admin = kafka_client.open_admin(settings, heard)
    topics = (*kafka_client.CONSUMED, kafka_client.PUBLISHED)
    try:
        made = kafka_client.create_topics(
            admin, topics, heard, partitions=partitions, replicas=replicas
        )
    except KafkaException as error:
        raise heard.explain(error, "make topics") from error
    for topic in made:
        typer.echo(topic)
    if not made:
        typer.echo("All topics are there.", err=True)
