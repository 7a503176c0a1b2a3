"""Why there is no access token.  To the failure policy each is a ``ConfigError``: the message waits.

error         exit  what helps
OAuthError    78    the text says: a wrong key, a client that the service does not know
Rejected      78    the service's own words, with its error code
LoginNeeded   78    minisend login
Unavailable   75    time: the service was not reached, or is in trouble
"""

from minisend.errors import ConfigError


class OAuthError(ConfigError):
    """There is no access token, and there will be none until somebody mends what the text names."""

    status = "4.7.8"


class Rejected(OAuthError):
    """The service refused a request.

    ``code``  its ``error`` (RFC 6749 section 5.2), such as "invalid_grant"
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class LoginNeeded(OAuthError):
    """A user has to log in, for the first time or again."""


class Unavailable(OAuthError):
    """The service was not reached, or did not answer as it should: a later try may do better (EX_TEMPFAIL)."""

    exit_code = 75
    status = "4.7.0"
