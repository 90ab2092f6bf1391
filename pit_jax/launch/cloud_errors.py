"""What went wrong with Cloud TPU, as one line that says what to do.

What may pass by itself is told from what is final: an error counts as final only where the
same call can never succeed, or only after a person did something.
"""

import re
from typing import Any

from pit_jax import installation
from pit_jax.errors import ConfigError, PitError

LOGIN = "gcloud auth application-default login"
NO_CREDENTIALS = f"there are no Google Cloud credentials here: {LOGIN}"
NO_LIBRARIES = f"Google's client libraries are missing here: {installation.extra('launch')}"
_PLUGIN = "metadata from plugin failed"  # gRPC's words for whatever ails credentials
# Codes of RFC 6749 and Google's own, after which only a new login helps.
_REVOKED = re.compile(
    "invalid_grant|(?:invalid|unauthorized|deleted)_client|Reauthentication|necessary fields"
)
# What tells a limit on calls from the quota of chips: both are RESOURCE_EXHAUSTED.
_RATE = re.compile(r"\brate\b|rate[ _-]?limit|requests? ?per|per ?(?:minute|second)", re.IGNORECASE)


class Unreachable(PitError):
    """Cloud TPU did not answer for a while; the same call may succeed later (exit code 5)."""

    exit_code = 5


class Exhausted(ConfigError):
    """The project's quota, or what the zone has, is used up."""


class Forbidden(ConfigError):
    """This account may not, or the service is off: only a person changes that."""


class NoLogin(ConfigError):
    """There are no credentials, or none that can be renewed: their owner has to log in."""


class Missing(ConfigError):
    """There is no such thing."""


class Exists(ConfigError):
    """There is one of that name."""


def is_transient(error: Exception, creating: bool) -> bool:
    """Whether the same call may succeed in a while."""
    from google.api_core import exceptions

    if isinstance(error, exceptions.ResourceExhausted):
        return not creating or bool(_RATE.search(str(error)))
    passing = exceptions.ServiceUnavailable, exceptions.DeadlineExceeded, exceptions.GatewayTimeout
    return (isinstance(error, passing) or _of_credentials(error)) and not needs_login(error)


def needs_login(error: Exception) -> bool:
    """Whether credentials cannot heal by themselves, as they do once the network is back.

    That is read from the text: over gRPC nothing else is left of what they raised, and even
    where the metadata server of a machine was away it is a RefreshError that calls itself
    not retryable.
    """
    from google.api_core import exceptions

    if isinstance(error, exceptions.Unauthenticated):
        return True
    return _of_credentials(error) and bool(_REVOKED.search(str(error)))


def _of_credentials(error: Exception) -> bool:
    from google.auth.exceptions import GoogleAuthError

    return isinstance(error, GoogleAuthError) or _PLUGIN in str(error)


def explained(error: Any, creating: bool, name: str, project: str, zone: str) -> PitError:
    """An error of the client library as ours.

    Args:
      creating: whether a resource was asked for, so that quota can be what is missing.
      name: of the resource, "" for none.
    """
    from google.api_core import exceptions

    said = line(getattr(error, "message", None) or str(error))
    place = f"{project}, {zone}"
    if isinstance(error, exceptions.NotFound):
        return Missing(said)
    if isinstance(error, exceptions.AlreadyExists):
        return Exists(said)
    if needs_login(error):
        return NoLogin(f"your Google Cloud credentials are not taken: {LOGIN} ({said})")
    if is_transient(error, creating):
        return Unreachable(f"Cloud TPU was not reached ({said}): try again later")
    if isinstance(error, exceptions.ResourceExhausted):
        metric = re.search(r"[A-Za-z0-9.]+(?:/[A-Za-z0-9_]+|PerProject[A-Za-z]+)", said)
        which = f" {metric[0]}" if metric else ""
        return Exhausted(
            f"the quota{which} of {place} is used up: ask for more in the console (IAM &"
            f' Admin, Quotas, "Cloud TPU API"), or another --zone or --spot ({said})'
        )
    disabled = "has not been used" in said or "SERVICE_DISABLED" in said or "disabled" in said
    if isinstance(error, exceptions.PermissionDenied) and disabled:
        return Forbidden(
            f"the Cloud TPU API is off in {project}: gcloud services enable"
            f" tpu.googleapis.com --project {project}"
        )
    if isinstance(error, exceptions.PermissionDenied):
        return Forbidden(
            f"no permission in {place}: the account needs roles/tpu.admin, and"
            f" roles/iam.serviceAccountUser on the workers' service account ({said})"
        )
    if isinstance(error, exceptions.InvalidArgument | exceptions.OutOfRange):
        return ConfigError(
            f"Cloud TPU refuses {name or 'this'} in {place}: {said}; what a zone has:"
            " cloud.google.com/tpu/docs/regions-zones"
        )
    if isinstance(error, exceptions.ServerError | exceptions.RetryError):
        return Unreachable(f"Cloud TPU failed ({said}): try again later")
    return ConfigError(f"Cloud TPU refuses {name or 'this'} in {place}: {said}")


def line(text: str) -> str:
    """What the service says, on one line."""
    return " ".join(text.split())[:300].rstrip(". ")
