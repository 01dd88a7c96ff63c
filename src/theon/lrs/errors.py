"""What the learning record store refuses, and why."""

from theon.errors import ConflictError, InputError

_READ_ON = "Mend the request; docs/guides/xapi.md says what is taken."


class StatementError(InputError):
    """A statement, a parameter or a document breaks a rule of xAPI; nothing of it was kept."""

    def __init__(self, what: str, *, where: str = "", next_step: str = _READ_ON) -> None:
        super().__init__(what, where=where, next_step=next_step)


class TooLargeError(InputError):
    """More was sent at once than is taken."""


class NotFoundError(InputError):
    """There is no such statement or document here."""


class StatementConflictError(ConflictError):
    """A statement with this id is there already and says something else."""


class DocumentConflictError(ConflictError):
    """A document would be overwritten by somebody who does not say that they have seen it."""


class PreconditionError(ConflictError):
    """The document is not the one that the sender has seen."""
