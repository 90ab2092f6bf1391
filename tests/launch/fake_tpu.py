"""Cloud TPU's service on loopback: queued resources that live through scripted histories.

It speaks the client library's own protocol definitions over a real channel, so that what is
tested is what goes over the wire.
"""

import concurrent.futures
import copy
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.auth.credentials import Credentials
from google.auth.transport.grpc import AuthMetadataPlugin
from google.cloud.tpu_v2 import types
from google.longrunning import operations_pb2
from google.protobuf import any_pb2
from google.rpc import status_pb2

STATES = types.QueuedResourceState.State
_FREE = (STATES.ACCEPTED, STATES.FAILED, STATES.SUSPENDED)  # to be deleted without force


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch):
    """The server; clients of this process and of its children find it."""
    made = FakeTpu()
    monkeypatch.setenv("PIT_JAX_TPU_ENDPOINT", made.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield made
    made.stop()


class Login(Credentials):
    """Credentials of a person, each call's token renewed: `errors` are raised one a renewal."""

    def __init__(self, *errors: Exception):
        super().__init__()
        self.errors = list(errors)
        self.renewals = 0

    def refresh(self, request: Any) -> None:
        self.renewals += 1
        if self.errors:
            raise self.errors.pop(0)
        self.token = "a-token"

    def before_request(self, request: Any, method: str, url: str, headers: dict) -> None:
        self.refresh(request)
        self.apply(headers)


class FakeTpu:
    """The service `google.cloud.tpu.v2.Tpu`, as far as queued resources go.

    Attributes:
      histories: name → a list of states for each creation of it, taken one a Get; the last one
        stays. An entry is "ACTIVE", ("FAILED", code, message), ("SUSPENDED", "USER"), or a
        function that is called on the way. Without a history: ACCEPTED for ever.
      calls: (method, name) of everything that was asked, in order; `requests` the messages.
      deleting: Gets that say DELETING before a resource is gone.
    """

    def __init__(self) -> None:
        self.histories: dict[str, list[list[Any]]] = {}
        self.resources: dict[str, types.QueuedResource] = {}
        self.calls: list[tuple[str, str]] = []
        self.requests: list[Any] = []
        self.deleting = 1
        self.operation_error: tuple[int, str] | None = None
        self.slow_operations = 0  # looks until an operation is done
        self._left: dict[str, list[Any]] = {}
        self._gone: dict[str, int] = {}
        self._faults: list[tuple[str, grpc.StatusCode, str, int, bool]] = []
        self._operations: dict[str, Any] = {}
        self._by_request: dict[str, str] = {}
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Again on the same port, with all that it knew."""
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        tpu = {
            name: _handler(getattr(self, f"_{name}"), kind.deserialize, answer)
            for name, kind, answer in (
                ("CreateQueuedResource", types.CreateQueuedResourceRequest, _as_is),
                ("DeleteQueuedResource", types.DeleteQueuedResourceRequest, _as_is),
                (
                    "GetQueuedResource",
                    types.GetQueuedResourceRequest,
                    types.QueuedResource.serialize,
                ),
                (
                    "ListQueuedResources",
                    types.ListQueuedResourcesRequest,
                    types.ListQueuedResourcesResponse.serialize,
                ),
            )
        }
        ask = operations_pb2.GetOperationRequest.FromString
        operations = {"GetOperation": _handler(self._GetOperation, ask, _as_is)}
        for service, methods in (
            ("google.cloud.tpu.v2.Tpu", tpu),
            ("google.longrunning.Operations", operations),
        ):
            handler = grpc.method_handlers_generic_handler(service, methods)
            self._server.add_generic_rpc_handlers((handler,))
        port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        assert port
        assert self.port in (0, port)
        self.port = port
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def channel(self, credentials: Any) -> grpc.Channel:
        """One that asks google.auth credentials before each call, as that of a user does."""
        plugin = grpc.metadata_call_credentials(AuthMetadataPlugin(credentials, None))
        local = grpc.local_channel_credentials()
        both = grpc.composite_channel_credentials(local, plugin)
        return grpc.secure_channel(self.address, both)

    # Scripts --------------------------------------------------------------------------

    def fail(
        self,
        method: str,
        code: grpc.StatusCode,
        message: str = "injected",
        times: int = 1,
        after: bool = False,
    ) -> None:
        """The next calls of a method end with an error; `after` having done what was asked."""
        self._faults.append((method, code, message, times, after))

    def state(self, name: str) -> str | None:
        """Of a resource now, without a Get."""
        found = self.resources.get(name)
        return found.state.state.name if found else None

    def count(self, method: str) -> int:
        return sum(called == method for called, _ in self.calls)

    def add(self, asked: Any) -> None:
        """A resource that somebody created, of a `Request`."""
        self._make(f"{asked.parent}/queuedResources/{asked.name}", asked.to_message())

    # The service ------------------------------------------------------------------------

    def _fault(self, context: Any, method: str, after: bool = False) -> None:
        for place, (failing, code, message, times, late) in enumerate(self._faults):
            if failing == method and late == after:
                left = (failing, code, message, times - 1, late)
                self._faults[place : place + 1] = [left] if times > 1 else []
                context.abort(code, message)

    def _note(self, method: str, request: Any, name: str) -> None:
        self.calls.append((method, name))
        self.requests.append(request)

    def _make(self, path: str, asked: Any) -> None:
        name = path.rpartition("/")[2]
        made = copy.deepcopy(asked)
        made.name = path
        scripts = self.histories.get(name, [])
        self._left[name] = list(scripts.pop(0)) if scripts else ["ACCEPTED"]
        self._gone.pop(name, None)
        self.resources[name] = made
        _set(made, "CREATING")

    def _CreateQueuedResource(self, request: Any, context: Any) -> Any:
        name = request.queued_resource_id
        self._note("CreateQueuedResource", request, name)
        self._fault(context, "CreateQueuedResource")
        known = self._by_request.get(request.request_id)
        if known is None:
            if name in self.resources:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{name} already exists")
            for spec in request.queued_resource.tpu.node_spec:
                if "-" not in spec.node.accelerator_type:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such accelerator type")
            if self.operation_error is None:
                path = f"{request.parent}/queuedResources/{name}"
                self._make(path, request.queued_resource)
            self._by_request[request.request_id] = name
        self._fault(context, "CreateQueuedResource", after=True)
        return self._operation(request.parent, self.resources.get(name))

    def _operation(self, parent: str, done: Any) -> Any:
        made = operations_pb2.Operation(name=f"{parent}/operations/{len(self._operations)}")
        self._operations[made.name] = (done, [self.slow_operations], self.operation_error)
        return self._looked(made.name)

    def _looked(self, name: str) -> Any:
        done, left, error = self._operations[name]
        made = operations_pb2.Operation(name=name)
        if left[0] > 0:
            left[0] -= 1
            return made
        made.done = True
        if error is not None:
            made.error.CopyFrom(status_pb2.Status(code=error[0], message=error[1]))
        elif done is not None:
            packed = any_pb2.Any()
            packed.Pack(types.QueuedResource.pb(done))
            made.response.CopyFrom(packed)
        return made

    def _GetOperation(self, request: Any, context: Any) -> Any:
        self._note("GetOperation", request, request.name)
        self._fault(context, "GetOperation")
        return self._looked(request.name)

    def _find(self, path: str, context: Any) -> Any:
        name = path.rpartition("/")[2]
        if name not in self.resources or self.resources[name].name != path:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Resource '{path}' was not found")
        return self.resources[name]

    def _GetQueuedResource(self, request: Any, context: Any) -> Any:
        name = request.name.rpartition("/")[2]
        self._note("GetQueuedResource", request, name)
        self._fault(context, "GetQueuedResource")
        found = self._find(request.name, context)
        if name in self._gone:
            self._gone[name] -= 1
            if self._gone[name] < 0:
                del self.resources[name]
                return self._find(request.name, context)
            return found
        left = self._left[name]
        while left and callable(left[0]):
            left.pop(0)()
        if left:
            _set(found, left.pop(0))
        return found

    def _ListQueuedResources(self, request: Any, context: Any) -> Any:
        self._note("ListQueuedResources", request, request.parent)
        self._fault(context, "ListQueuedResources")
        inside = [r for r in self.resources.values() if r.name.startswith(f"{request.parent}/")]
        start = int(request.page_token or 0)
        page = inside[start : start + 2]  # small pages, to see that all are read
        token = str(start + 2) if len(inside) > start + 2 else ""
        return types.ListQueuedResourcesResponse(queued_resources=page, next_page_token=token)

    def _DeleteQueuedResource(self, request: Any, context: Any) -> Any:
        name = request.name.rpartition("/")[2]
        self._note("DeleteQueuedResource", request, name)
        self._fault(context, "DeleteQueuedResource")
        found = self._find(request.name, context)
        if not request.force and found.state.state not in _FREE:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it has running nodes: use force")
        _set(found, "DELETING")
        self._gone.setdefault(name, self.deleting)
        return self._operation(request.name.partition("/queuedResources")[0], None)


def _handler(behaviour: Callable, deserialize: Callable, serialize: Callable) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        behaviour, request_deserializer=deserialize, response_serializer=serialize
    )


def _as_is(message: Any) -> bytes:
    return message.SerializeToString()


def _set(resource: Any, entry: Any) -> None:
    """Puts a resource into a state of a history."""
    name, *more = (entry,) if isinstance(entry, str) else entry
    state = types.QueuedResourceState(state=STATES[name])
    if name == "FAILED" and more:
        error = status_pb2.Status(code=more[0], message=more[1])
        state.failed_data = types.QueuedResourceState.FailedData(error=error)
    elif more:
        state.state_initiator = types.QueuedResourceState.StateInitiator[more[0]]
    resource.state = state
