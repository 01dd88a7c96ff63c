"""What can go wrong at the door."""

from theon.errors import TheonError


class SignInError(TheonError):
    """What was shown proves nobody: a wrong password, a key or token that does not hold."""


class LockedError(SignInError):
    """Too many failures lately; `retry_after_s` says when to come back."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        minutes = max(1, -(-retry_after_s // 60))
        super().__init__(
            "too many attempts to sign in have failed",
            where="sign-in",
            next_step=f"Try again in {minutes} minute{'s' if minutes > 1 else ''}, or have an "
            "administrator set a new password.",
        )


class ForbiddenError(TheonError):
    """Known who it is, and they may not do this."""
