"""Who may let what rest: one rule for API and pages."""

from theon.access.errors import ForbiddenError
from theon.access.principals import Principal
from theon.access.roles import Permission

QUEUE = "queue"


def may_pause(by: Principal, subject: str) -> bool:
    """Whether they may pause and resume a `queue`, a `kind` or a `campus` within their scope.

    Queues are shared by all campuses. A kind of job, or all jobs, of the own campus and those
    below it are the matter of whoever may cancel these jobs anyway.
    """
    return by.may(Permission.QUEUES_CONTROL if subject == QUEUE else Permission.JOBS_CONTROL)


def check_pause(by: Principal, subject: str) -> None:
    """Let pass who may pause and resume such a thing.

    Raises:
        ForbiddenError: they may not.
    """
    if not may_pause(by, subject):
        raise ForbiddenError(
            f"a {by.role.replace('_', ' ')} may not pause or resume a {subject}",
            next_step="Ask a system administrator.",
        )
