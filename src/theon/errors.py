"""Errors that a person reads: what happened, where, and what to do next."""


class TheonError(Exception):
    """An expected failure with a message for a person.

    The message reads: what happened, where (file, line, id), what to do next. The command
    line prints it without a traceback and ends with `exit_status`.
    """

    exit_status = 1

    def __init__(self, what: str, *, where: str = "", next_step: str = "") -> None:
        self.what = what
        self.where = where
        self.next_step = next_step
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The three parts as one text."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n{self.next_step}" if self.next_step else head


class InputError(TheonError):
    """What was given cannot be used: a file, an option, an id."""

    exit_status = 2


class MissingError(InputError):
    """What was asked for by its number or name is not there, or not in the caller's scope."""


class UnavailableError(TheonError):
    """Something Theon depends on is not there: a database, a file system."""

    exit_status = 4


class ConflictError(TheonError):
    """Somebody else changed the same thing at the same time; trying again is safe."""

    exit_status = 5
