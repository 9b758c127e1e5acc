"""What can go wrong with the stack itself; what the user can mend is a ``UserError``."""

from ssl_backdoor.errors import SslBackdoorError


class ServiceError(SslBackdoorError):
    """A service ended, did not become ready in time or does not answer."""
