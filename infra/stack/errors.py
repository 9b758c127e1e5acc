"""Errors of the stack itself; a mistake that the user can fix is a ``UserError``."""

from ssl_backdoor.errors import SslBackdoorError


class ServiceError(SslBackdoorError):
    """A service ended, did not become ready in time or does not answer."""
