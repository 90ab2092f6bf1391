"""The client of Cloud TPU's queued resources: create, look, list, delete.

What is transient is tried again for a bounded time. Everything else becomes one line that
says what to do. Nothing is deleted that the given launch did not create: its id is a label.
Credentials are those of Google's default chain, and of nothing else.
"""

import contextlib
import dataclasses
import os
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pit_jax import waiting
from pit_jax.errors import ConfigError, PitError
from pit_jax.launch import cloud_errors
from pit_jax.launch.cloud_errors import (
    NO_CREDENTIALS,
    NO_LIBRARIES,
    Exists,
    Missing,
    NoLogin,
    Unreachable,
)
from pit_jax.launch.cloud_errors import Exhausted as Exhausted
from pit_jax.launch.request import LABEL, Request

ENDPOINT = "PIT_JAX_TPU_ENDPOINT"  # HOST:PORT on loopback, for tests
SERVICE = "Cloud TPU"
CALL_S = 30.0  # for one call to be answered
PATIENCE_S = 90.0  # for a call that fails for a while
OPERATION_S = 60.0  # until a creation has been looked at; the resource itself says the rest
_DELETING = "DELETING"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Resource:
    """A queued resource as it is now.

    Attributes:
      state: "ACTIVE" and the like, see types.QueuedResourceState.State.
      launch: id of the launch that created it; "" of what is not ours.
      reason: why it FAILED, in the service's words.
      code: number of that error in google.rpc.Code, 0 for none.
      by_user: whether a person suspended it.
      workdir: of its run, "" if its script does not say.
    """

    name: str
    state: str
    launch: str = ""
    accelerator: str = ""
    workdir: str = ""
    reason: str = ""
    code: int = 0
    by_user: bool = False
    spot: bool = False


class Client:
    """Queued resources of one project and zone.

    Args:
      channel: a gRPC channel to the service; by default one with the default credentials.
      patience_s, pause_s: how long a call is tried again, by default PATIENCE_S, and the first
        pause, then doubled.

    Raises:
      ConfigError: if the client library or credentials are missing; from every method for
        what the service refuses for good.
      NoLogin: from every method, if the credentials were taken back.
      Exhausted: from `create`.
      Unreachable: from every method, if the service does not answer in time.
    """

    def __init__(
        self,
        project: str,
        zone: str,
        patience_s: float | None = None,
        pause_s: float = 1.0,
        channel: Any = None,
    ):
        self.project, self.zone = project, zone
        self.parent = f"projects/{project}/locations/{zone}"
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._pause_s = pause_s
        self._client = _connect(channel)

    def create(self, asked: Request) -> Resource:
        """Asks for a resource; one of the same launch that is there already will do."""
        # The same in every try, so that a lost answer does not make two of it.
        call = {
            "parent": self.parent,
            "queued_resource_id": asked.name,
            "queued_resource": asked.to_message(),
            "request_id": str(uuid.uuid4()),
        }
        try:
            begun = self._call(self._client.create_queued_resource, call, asked.name, True)
            if not self._is_done(begun):
                return self._created(asked)
            with self._told(asked.name, creating=True):
                done = begun.result(timeout=0)
        except Exists:
            return self._known(asked)
        return _resource(done) if done.name else self._created(asked)

    def _is_done(self, begun: Any) -> bool:
        """Whether an operation ends soon; False too if it cannot be looked at.

        It was taken then, and what becomes of it, the resource says.
        """
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError

        ends, pause = time.monotonic() + OPERATION_S, self._pause_s
        with contextlib.suppress(GoogleAPIError, GoogleAuthError):
            while not self._retry(OPERATION_S)(begun.done)():
                if time.monotonic() + pause > ends:
                    return False
                time.sleep(pause)
                pause = min(2 * pause, 10.0)
            return True
        return False

    def _created(self, asked: Request) -> Resource:
        with contextlib.suppress(PitError):  # it was taken, whether or not it can be seen
            if found := self.get(asked.name):
                return found
        return Resource(asked.name, "CREATING", asked.id)

    def _known(self, asked: Request) -> Resource:
        found = self.get(asked.name)
        if found is None:  # it went meanwhile
            raise Unreachable(f"{asked.name} was there and is gone: try again")
        if found.launch != asked.id:
            whose = f"of another launch ({found.launch})" if found.launch else "and is not ours"
            raise ConfigError(
                f"a queued resource {asked.name} exists in {self.project}, {self.zone}, {whose}:"
                f" choose another --name, or pit-jax launch stop {asked.name}"
            )
        if found.state == _DELETING:
            raise Unreachable(f"{asked.name} is still being deleted: try again in a minute")
        return found

    def get(self, name: str) -> Resource | None:
        """What it is now; None if there is none."""
        path = f"{self.parent}/queuedResources/{name}"
        try:
            return _resource(self._call(self._client.get_queued_resource, {"name": path}, name))
        except Missing:
            return None

    def list(self) -> list[Resource]:
        """All of the project and zone, ours and others."""

        def read(request: dict, **options: Any) -> list[Any]:
            return list(self._client.list_queued_resources(request, **options))

        try:
            return [_resource(one) for one in self._call(read, {"parent": self.parent})]
        except Missing:
            return []

    def delete(self, name: str, launch: str) -> bool:
        """Deletes a resource and its nodes; it is gone some minutes later.

        Returns whether there was one, that was not being deleted already.

        Raises:
          ConfigError: if it is not of this launch.
        """
        found = self.get(name)
        if found is None:
            return False
        if not launch or found.launch != launch:
            raise ConfigError(
                f"the queued resource {name} in {self.project}, {self.zone} was not created by"
                f" this launch ({launch}): it was left alone"
            )
        if found.state == _DELETING:
            return False
        path = f"{self.parent}/queuedResources/{name}"
        call = {"name": path, "force": True, "request_id": str(uuid.uuid4())}
        try:
            self._call(self._client.delete_queued_resource, call, name)
        except Missing:
            return False
        return True

    # Calling --------------------------------------------------------------------------

    def _retry(self, patience_s: float, creating: bool = False) -> Any:
        from google.api_core.retry import Retry

        return Retry(
            predicate=lambda error: cloud_errors.is_transient(error, creating),
            initial=self._pause_s,
            maximum=max(10.0, self._pause_s),
            multiplier=2.0,
            timeout=patience_s,
        )

    def _call(
        self,
        method: Callable[..., T],
        request: dict[str, Any],
        name: str = "",
        creating: bool = False,
    ) -> T:
        retry = self._retry(self._patience_s, creating)
        with self._told(name, creating):
            return retry(method)(request=request, timeout=CALL_S, retry=None)

    @contextlib.contextmanager
    def _told(self, name: str, creating: bool = False) -> Iterator[None]:
        """Errors of the library as ours."""
        from google.api_core.exceptions import GoogleAPIError, RetryError
        from google.auth.exceptions import GoogleAuthError

        try:
            with waiting.announced(SERVICE):
                yield
        except (GoogleAPIError, GoogleAuthError) as error:
            cause = error.cause if isinstance(error, RetryError) and error.cause else error
            raise cloud_errors.explained(cause, creating, name, self.project, self.zone) from None


def _connect(channel: Any) -> Any:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or its own log lines reach the user
    try:
        import grpc
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.cloud import tpu_v2
        from google.cloud.tpu_v2.services.tpu.transports import TpuGrpcTransport
    except ImportError:
        raise ConfigError(NO_LIBRARIES) from None
    endpoint = os.environ.get(ENDPOINT)
    if channel is None and endpoint:
        if not re.fullmatch(r"(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}", endpoint):
            raise ConfigError(f"{ENDPOINT}={endpoint[:60]}: only HOST:PORT of this machine")
        options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.enable_http_proxy", 0)]
        options.append(("grpc.use_local_subchannel_pool", 1))
        channel = grpc.insecure_channel(endpoint, options=options)
    if channel is not None:
        return tpu_v2.TpuClient(transport=TpuGrpcTransport(channel=channel))
    try:
        with waiting.announced(SERVICE, answers=False):  # asks machines and servers who we are
            return tpu_v2.TpuClient()
    except DefaultCredentialsError:
        raise NoLogin(NO_CREDENTIALS) from None
    except GoogleAuthError as error:
        raise Unreachable(f"Cloud TPU was not reached ({cloud_errors.line(str(error))})") from None


def _resource(found: Any) -> Resource:
    specs = list(found.tpu.node_spec)
    node = specs[0].node if specs else None
    labels = dict(node.labels) if node else {}
    state, error = found.state, found.state.failed_data.error
    reason = cloud_errors.line(error.message) if error.code else ""
    return Resource(
        name=found.name.rpartition("/")[2],
        state=state.state.name,
        launch=labels.get(LABEL, ""),
        accelerator=node.accelerator_type if node else "",
        workdir=_workdir(node.metadata.get("startup-script", "")) if node else "",
        reason=reason,
        code=error.code,
        by_user=state.state_initiator.name == "USER",
        spot="spot" in found,
    )


def _workdir(script: str) -> str:
    """What a start-up script of ours says."""
    for line in script.splitlines():
        if line.startswith("WORKDIR="):
            with contextlib.suppress(ValueError):
                return (shlex.split(line) or [""])[0].removeprefix("WORKDIR=")
    return ""
