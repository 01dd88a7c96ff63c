"""What a statement may look like: every rule of xAPI 1.0.3 and 2.0 on its properties.

The shapes are closed, so an unknown property, one in other letters and a null are refused
wherever they stand, except in extensions. Values are checked and never changed.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    with_config,
)
from typing_extensions import TypedDict

from theon.lrs.errors import StatementError
from theon.lrs.values import (
    Duration,
    Extensions,
    Iri,
    Language,
    LanguageMap,
    Mailto,
    MediaType,
    Sha1,
    Sha2,
    Uuid,
    read_time,
)
from theon.lrs.versions import Version, is_statement_version

VOIDED = "http://adlnet.gov/expapi/verbs/voided"
IDENTIFIERS = ("mbox", "mbox_sha1sum", "openid", "account")
CONTEXT_ACTIVITIES = ("parent", "grouping", "category", "other")

CLOSED = ConfigDict(extra="forbid", strict=True)

_COMPONENTS = ("choices", "scale", "source", "target", "steps")


def _check_time(value: str, info: ValidationInfo) -> str:
    read_time(value, with_offset=info.context is Version.TWO)
    return value


def _check_version(value: str) -> str:
    if not is_statement_version(value):
        raise ValueError(f"{value[:20]!r} is neither 1.0.x nor 2.0.x")
    return value


Timestamp = Annotated[str, AfterValidator(_check_time)]


@with_config(CLOSED)
class Account(TypedDict):
    """An account of somebody on a site."""

    homePage: Iri
    name: str


@with_config(CLOSED)
class _Identified(TypedDict, total=False):
    name: str
    mbox: Mailto
    mbox_sha1sum: Sha1
    openid: Iri
    account: Account


@with_config(CLOSED)
class AgentShape(_Identified, total=False):
    """Somebody."""

    objectType: Literal["Agent"]


def _check_agent(agent: AgentShape) -> AgentShape:
    if len(identifiers(agent)) != 1:
        raise ValueError(f"an Agent has exactly one of {', '.join(IDENTIFIERS)}")
    return agent


Agent = Annotated[AgentShape, AfterValidator(_check_agent)]


@with_config(CLOSED)
class GroupShape(_Identified, total=False):
    """Several people."""

    objectType: Literal["Group"]
    member: list[Agent]


def _check_group(group: GroupShape) -> GroupShape:
    known = len(identifiers(group))
    if known > 1:
        raise ValueError(f"a Group has at most one of {', '.join(IDENTIFIERS)}")
    if group.get("objectType") != "Group":
        raise ValueError("a Group says so in its objectType")
    if not known and not group.get("member"):
        raise ValueError("a Group without an identifier has members")
    return group


Group = Annotated[GroupShape, AfterValidator(_check_group)]


def _kind_of_actor(value: object) -> str:
    found = value.get("objectType", "Agent") if isinstance(value, Mapping) else "Agent"
    return found if isinstance(found, str) else ""


Actor = Annotated[
    Annotated[Agent, Tag("Agent")] | Annotated[Group, Tag("Group")],
    Discriminator(_kind_of_actor),
]


def _check_authority(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if value.get("objectType") == "Group" and (
        identifiers(value) or len(value.get("member", ())) != 2
    ):
        raise ValueError("a Group that is an authority has two members and no identifier")
    return value


@with_config(CLOSED)
class Verb(TypedDict):
    """What was done."""

    id: Iri
    display: NotRequired[LanguageMap]


@with_config(CLOSED)
class Component(TypedDict):
    """One of the things to choose from, or the like."""

    id: str
    description: NotRequired[LanguageMap]


def _check_components(value: list[Component]) -> list[Component]:
    if len({component["id"] for component in value}) < len(value):
        raise ValueError("two of these have the same id")
    return value


Components = Annotated[list[Component], AfterValidator(_check_components)]


@with_config(CLOSED)
class DefinitionShape(TypedDict, total=False):
    """What an activity is."""

    name: LanguageMap
    description: LanguageMap
    type: Iri
    moreInfo: Iri
    extensions: Extensions
    interactionType: Literal[
        "true-false", "choice", "fill-in", "long-fill-in", "matching", "performance",
        "sequencing", "likert", "numeric", "other",
    ]  # fmt: skip
    correctResponsesPattern: list[str]
    choices: Components
    scale: Components
    source: Components
    target: Components
    steps: Components


def _check_definition(value: DefinitionShape) -> DefinitionShape:
    used = [name for name in ("correctResponsesPattern", *_COMPONENTS) if name in value]
    if used and "interactionType" not in value:
        raise ValueError(f"{used[0]} belongs to an interactionType, and there is none")
    return value


@with_config(CLOSED)
class Activity(TypedDict):
    """Something to learn with."""

    objectType: NotRequired[Literal["Activity"]]
    id: Iri
    definition: NotRequired[Annotated[DefinitionShape, AfterValidator(_check_definition)]]


@with_config(CLOSED)
class StatementRef(TypedDict):
    """Another statement, by its id."""

    objectType: Literal["StatementRef"]
    id: Uuid


Finite = Annotated[float, Field(allow_inf_nan=False)]


@with_config(CLOSED)
class ScoreShape(TypedDict, total=False):
    """How well it was done."""

    scaled: Annotated[float, Field(ge=-1, le=1)]
    raw: Finite
    min: Finite
    max: Finite


def _check_score(score: ScoreShape) -> ScoreShape:
    least, most, raw = score.get("min"), score.get("max"), score.get("raw")
    if least is not None and most is not None and least >= most:
        raise ValueError("min is not below max")
    if raw is not None and (
        (least is not None and raw < least) or (most is not None and raw > most)
    ):
        raise ValueError("raw is not between min and max")
    return score


@with_config(CLOSED)
class Result(TypedDict, total=False):
    """How it went."""

    score: Annotated[ScoreShape, AfterValidator(_check_score)]
    success: bool
    completion: bool
    response: str
    duration: Duration
    extensions: Extensions


@with_config(CLOSED)
class _ContextPart(TypedDict):
    relevantTypes: NotRequired[Annotated[list[Iri], Field(min_length=1)]]


@with_config(CLOSED)
class ContextAgent(_ContextPart):
    """Somebody who has to do with it (2.0)."""

    objectType: Literal["contextAgent"]
    agent: Agent


@with_config(CLOSED)
class ContextGroup(_ContextPart):
    """Several people who have to do with it (2.0)."""

    objectType: Literal["contextGroup"]
    group: Group


def _kind_of_activities(value: object) -> str:
    return "list" if isinstance(value, list) else "one"


# Version 1.0 lets a single activity stand without its list.
Activities = Annotated[
    Annotated[list[Activity], Tag("list")] | Annotated[Activity, Tag("one")],
    Discriminator(_kind_of_activities),
]


@with_config(CLOSED)
class ContextActivities(TypedDict, total=False):
    """Activities that have to do with it."""

    parent: Activities
    grouping: Activities
    category: Activities
    other: Activities


@with_config(CLOSED)
class ContextShape(TypedDict, total=False):
    """What it has to do with."""

    registration: Uuid
    instructor: Actor
    team: Group
    contextActivities: ContextActivities
    contextAgents: list[ContextAgent]
    contextGroups: list[ContextGroup]
    revision: str
    platform: str
    language: Language
    statement: StatementRef
    extensions: Extensions


def _check_context(context: ContextShape, info: ValidationInfo) -> ContextShape:
    new = [name for name in ("contextAgents", "contextGroups") if name in context]
    if new and info.context is not Version.TWO:
        raise ValueError(f"{new[0]} came with xAPI 2.0; the request speaks 1.0")
    return context


@with_config(CLOSED)
class Attachment(TypedDict):
    """A file that belongs to it."""

    usageType: Iri
    display: LanguageMap
    description: NotRequired[LanguageMap]
    contentType: MediaType
    length: Annotated[int, Field(ge=0)]
    sha2: Sha2
    fileUrl: NotRequired[Iri]


@with_config(CLOSED)
class _Told(TypedDict):
    actor: Actor
    verb: Verb
    result: NotRequired[Result]
    context: NotRequired[Annotated[ContextShape, AfterValidator(_check_context)]]
    timestamp: NotRequired[Timestamp]
    attachments: NotRequired[list[Attachment]]


def _kind_of_object(value: object) -> str:
    found = value.get("objectType", "Activity") if isinstance(value, Mapping) else "Activity"
    return found if isinstance(found, str) else ""


def _check_told(told: Mapping[str, Any]) -> Mapping[str, Any]:
    context = told.get("context", {})
    if told["object"].get("objectType", "Activity") != "Activity":
        for name in ("revision", "platform"):
            if name in context:
                raise ValueError(f"context.{name} belongs to statements about an Activity")
    return told


@with_config(CLOSED)
class SubStatementShape(_Told):
    """A statement within another one; it says what was not done itself."""

    objectType: Literal["SubStatement"]
    object: Annotated[
        Annotated[Activity, Tag("Activity")]
        | Annotated[Agent, Tag("Agent")]
        | Annotated[Group, Tag("Group")]
        | Annotated[StatementRef, Tag("StatementRef")],
        Discriminator(_kind_of_object),
    ]


@with_config(CLOSED)
class StatementShape(_Told):
    """Who did what."""

    object: Annotated[
        Annotated[Activity, Tag("Activity")]
        | Annotated[Agent, Tag("Agent")]
        | Annotated[Group, Tag("Group")]
        | Annotated[StatementRef, Tag("StatementRef")]
        | Annotated[Annotated[SubStatementShape, AfterValidator(_check_told)], Tag("SubStatement")],
        Discriminator(_kind_of_object),
    ]
    id: NotRequired[Uuid]
    stored: NotRequired[Timestamp]
    authority: NotRequired[Annotated[Actor, AfterValidator(_check_authority)]]
    version: NotRequired[Annotated[str, AfterValidator(_check_version)]]


def _check_statement(statement: Mapping[str, Any]) -> Mapping[str, Any]:
    if is_voiding(statement) and statement["object"].get("objectType") != "StatementRef":
        raise ValueError("what is voided is named by a StatementRef")
    return _check_told(statement)


_STATEMENT: TypeAdapter[Any] = TypeAdapter(
    Annotated[StatementShape, AfterValidator(_check_statement)]
)
_AGENT: TypeAdapter[Any] = TypeAdapter(Agent)
_ACTOR: TypeAdapter[Any] = TypeAdapter(Actor)


def check_statement(value: Any, version: Version, *, where: str = "statement") -> None:
    """Refuse what is no statement.

    Raises:
        StatementError: it breaks a rule; says which and where.
    """
    _check(_STATEMENT, value, version, where)


def check_agent(value: Any, *, where: str) -> None:
    """Refuse what is no Agent.

    Raises:
        StatementError: it breaks a rule; says which.
    """
    _check(_AGENT, value, Version.TWO, where)


def check_actor(value: Any, *, where: str) -> None:
    """Refuse what is neither an Agent nor a Group that can be recognised.

    Raises:
        StatementError: it breaks a rule; says which.
    """
    _check(_ACTOR, value, Version.TWO, where)
    if not identifiers(value):
        raise StatementError("a Group without an identifier cannot be looked for", where=where)


def identifiers(actor: Mapping[str, Any]) -> list[str]:
    """The names of the properties that say who it is."""
    return [name for name in IDENTIFIERS if name in actor]


def is_voiding(statement: Mapping[str, Any]) -> bool:
    """Whether it takes back another statement."""
    return bool(statement["verb"]["id"] == VOIDED)


def _check(shape: TypeAdapter[Any], value: Any, version: Version, where: str) -> None:
    try:
        shape.validate_python(value, context=version)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join([where, *_places(fault["loc"])])
        raise StatementError(fault["msg"].removeprefix("Value error, "), where=place) from None


def _places(parts: Iterable[int | str]) -> list[str]:
    return [str(part)[:100] for part in parts]
