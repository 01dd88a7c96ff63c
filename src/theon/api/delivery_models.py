"""What the API of the delivery ledger takes and answers."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from theon.api.jobs_models import JobId, Json, Name, Strict, Words
from theon.intake.delivery_query import Figures, JournalState, SourceFigures, SpanFigures
from theon.intake.gaps import KeptGap
from theon.intake.letters import Letter, LetterFilter, LetterGroup
from theon.intake.mends import MOST_STEPS

IDS_AT_MOST = 1_000
PREVIEWED_AT_MOST = 20

Note = Annotated[Words | None, Field(max_length=500, description="why; kept on record")]
Ids = Annotated[list[JobId], Field(min_length=1, max_length=IDS_AT_MOST)]
Steps = Annotated[
    list[Json],
    Field(
        max_length=MOST_STEPS,
        description="changes made in a copy, in this order: set, rename, remove, replace",
        examples=[[{"do": "rename", "field": "userid", "to": "user_id"}]],
    ),
]


class DeliveryShown(BaseModel):
    """The ledger over a span."""

    since: datetime
    until: datetime
    by: Literal["hour", "day"]
    total: Figures
    sources: list[SourceFigures]
    spans: Annotated[list[SpanFigures], Field(description="per source and hour or day, UTC")]
    journal: Annotated[list[JournalState], Field(description="accepted, and not landed yet")]


class GapsPage(BaseModel):
    """Gaps and clocks that are off, newest first."""

    gaps: list[KeptGap]
    next_cursor: Annotated[int | None, Field(description="`before` of the next page")]


class GapAccepted(Strict):
    """Why it is as it should be."""

    explanation: Annotated[Words, Field(min_length=1, max_length=500)]


class LettersPage(BaseModel):
    """Dead letters, newest first."""

    letters: list[Letter]
    next_cursor: Annotated[int | None, Field(description="`before` of the next page")]


class GroupsShown(BaseModel):
    """Waiting letters by source and reason; most first."""

    groups: list[LetterGroup]


class LettersWanted(Strict):
    """Which waiting letters: all that match all that is said."""

    campus: Name | None = None
    source: Name | None = None
    reason: Words | None = None
    stage: Name | None = None
    upto: Annotated[JobId | None, Field(description="none with a higher number")] = None

    def as_filter(self) -> LetterFilter:
        """The same, for the ledger."""
        return LetterFilter(**self.model_dump())


class LettersChosen(Strict):
    """Letters by their numbers, or by what they have in common."""

    ids: Ids | None = None
    filter: LettersWanted | None = None
    note: Note = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give ids or a filter, and not both")
        return self


class ReplayWanted(LettersChosen):
    """Letters to replay, and how they are mended before."""

    mend: Steps = Field(default_factory=list)


class OneReplayWanted(Strict):
    """How a letter is mended before it is replayed."""

    mend: Steps = Field(default_factory=list)
    note: Note = None


class NoteGiven(Strict):
    """Why."""

    note: Note = None


class PreviewWanted(Strict):
    """Letters, and how they would be mended."""

    ids: Annotated[list[JobId], Field(min_length=1, max_length=PREVIEWED_AT_MOST)]
    mend: Steps = Field(default_factory=list)


class TriedShown(BaseModel):
    """What became, or would become, of a letter."""

    id: int
    outcome: Literal["accepted", "duplicate", "refused"]
    reason: str | None = None
    detail: str | None = None
    before: Annotated[str, Field(description="the original; of a preview only")] = ""
    after: Annotated[str, Field(description="the mended copy; of a preview only")] = ""


class ReplayDone(BaseModel):
    """What a replay did, or would do."""

    accepted: int
    duplicate: int
    refused: int
    reasons: Annotated[dict[str, int], Field(description="why letters were refused again")]
    tried: Annotated[list[TriedShown], Field(description="one by one, where ids were given")] = []
    skipped: Annotated[list[int], Field(description="ids of none that waits in this scope")] = []


class DiscardDone(BaseModel):
    """What a discard did."""

    discarded: int
    skipped: Annotated[list[int], Field(description="ids of none that waits in this scope")] = []
