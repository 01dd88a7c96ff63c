"""What jobs raise, and what that means for the next attempt."""

from theon.errors import ConflictError, InputError, TheonError


class TransientError(TheonError):
    """The attempt failed for a reason that may pass: it is retried while attempts are left.

    Every exception that is not a `PermanentError` or an `InputError` is treated so.
    """


class PermanentError(TheonError):
    """Another attempt would fail in the same way: the job is a dead letter at once."""


class LostLeaseError(ConflictError):
    """Another attempt owns the job now: stop, and write nothing more."""


class CancelledError(TheonError):
    """Somebody cancelled the job while it ran."""


class UnknownKindError(InputError):
    """No code of this installation declares the kind."""


class CycleError(InputError):
    """Jobs of one batch wait for each other in a circle, so none could ever run."""


class DependencyError(InputError):
    """A job that is needed does not exist, or has failed already."""


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    return not isinstance(error, PermanentError | InputError)
