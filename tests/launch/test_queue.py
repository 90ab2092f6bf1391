"""The client of queued resources, over a real channel to a server of the service."""

import threading
import time

import grpc
import pytest
from google.auth.exceptions import RefreshError, TransportError

from pit_jax import waiting
from pit_jax.errors import ConfigError
from pit_jax.launch import queue
from pit_jax.launch.request import Request

from .fake_tpu import Login
from .fake_tpu import service as service

ID = "0123456789ab"
SCRIPT = "#!/bin/bash\nNAME=pit\nWORKDIR='gs://bucket/a run'\necho ok\n"


def asked(name: str = "pit", **fields) -> Request:
    given = {"id": ID, "project": "my-project", "zone": "us-west4-a"}
    given |= {"accelerator": "v5litepod-16", "workdir": "gs://bucket/pit", "script": SCRIPT}
    return Request(name, **(given | fields))


@pytest.fixture
def client(service) -> queue.Client:
    return queue.Client("my-project", "us-west4-a", patience_s=2.0, pause_s=0.01)


def refusal(call, *words, kind=ConfigError) -> str:
    with pytest.raises(kind) as found:
        call(*words)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_what_is_created_is_what_was_asked_for(service, client):
    service.histories["pit"] = [["ACCEPTED", "PROVISIONING", "ACTIVE"]]
    client.create(asked(spot=True, slices=2))
    [sent] = [r for r in service.requests if hasattr(r, "queued_resource_id")]
    assert sent.parent == "projects/my-project/locations/us-west4-a"
    assert sent.queued_resource_id == "pit"
    spec = sent.queued_resource.tpu.node_spec[0]
    assert spec.multislice_params.node_count == 2
    assert spec.node.accelerator_type == "v5litepod-16"
    assert spec.node.metadata["startup-script"] == SCRIPT
    seen = [client.get("pit").state for _ in range(4)]
    assert seen == ["ACCEPTED", "PROVISIONING", "ACTIVE", "ACTIVE"]
    found = client.get("pit")
    assert (found.launch, found.spot) == (ID, True)
    assert found.workdir == "gs://bucket/a run"  # quoted as a shell would
    assert (found.accelerator, found.reason) == ("v5litepod-16", "")


def test_what_is_not_there(client):
    assert client.get("pit") is None
    assert client.delete("pit", ID) is False
    assert client.list() == []


def test_all_pages_of_a_list_are_read(service, client):
    for number in range(5):
        service.add(asked(f"pit-{number}"))
    service.add(asked("elsewhere", zone="us-east1-c"))
    assert [found.name for found in client.list()] == [f"pit-{n}" for n in range(5)]


def test_an_operation_that_takes_its_time_is_waited_for(service, client):
    service.slow_operations = 3
    assert client.create(asked()).name == "pit"
    assert service.count("GetOperation") == 3


def test_an_operation_that_takes_too_long_is_left_to_the_resource(service, client, monkeypatch):
    monkeypatch.setattr(queue, "OPERATION_S", 0.1)
    service.slow_operations = 1000
    assert client.create(asked()).state == "ACCEPTED"


# Faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED"])
@pytest.mark.parametrize(
    "method", ["GetQueuedResource", "ListQueuedResources", "DeleteQueuedResource"]
)
def test_a_call_that_fails_for_a_while_is_tried_again(service, client, method, code):
    service.add(asked())
    service.fail(method, grpc.StatusCode[code], times=3)
    calls = {
        "GetQueuedResource": lambda: client.get("pit"),
        "ListQueuedResources": client.list,
        "DeleteQueuedResource": lambda: client.delete("pit", ID),
    }
    assert calls[method]()
    assert service.count(method) == 4


def test_a_creation_whose_answer_was_lost_makes_one_resource(service, client):
    unavailable = grpc.StatusCode.UNAVAILABLE
    service.fail("CreateQueuedResource", unavailable, times=2, after=True)
    assert client.create(asked()).launch == ID
    sent = [r.request_id for r in service.requests if hasattr(r, "queued_resource_id")]
    assert len(sent) == 3
    assert len(set(sent)) == 1  # so that the service knows it again
    assert list(service.resources) == ["pit"]


def test_our_own_resource_that_exists_already_will_do(service, client):
    service.add(asked())
    assert client.create(asked()).launch == ID
    assert list(service.resources) == ["pit"]


def test_the_resource_of_another_launch_is_refused(service, client):
    service.add(asked(id="f" * 12))
    assert "exists in my-project, us-west4-a, of another launch" in refusal(client.create, asked())


def test_patience_ends_and_says_meanwhile_what_it_waits_for(service, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "SILENT_S", 0.01)
    monkeypatch.setattr(waiting, "_HEARD", set())
    client = queue.Client("my-project", "us-west4-a", patience_s=0.2, pause_s=0.01)
    service.fail("GetQueuedResource", grpc.StatusCode.UNAVAILABLE, "down", times=10_000)
    began = time.monotonic()
    assert "not reached" in refusal(client.get, "pit", kind=queue.Unreachable)
    assert time.monotonic() - began < 20
    assert "not reached" in refusal(client.get, "pit", kind=queue.Unreachable)
    assert capsys.readouterr().err.count("waiting for Cloud TPU to answer") == 1


def test_a_server_that_is_gone_and_comes_back_on_its_port(service):
    client = queue.Client("my-project", "us-west4-a", patience_s=20.0, pause_s=0.05)
    service.add(asked())
    assert client.get("pit")
    service.stop()
    back = threading.Timer(1.0, service.start)
    back.start()
    try:
        assert client.get("pit").launch == ID
    finally:
        back.join()


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (
            "RESOURCE_EXHAUSTED",
            "Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0",
            "the quota TPUV5sLitepodPerProjectPerZoneForTPUAPI of my-project, us-west4-a",
        ),
        ("INVALID_ARGUMENT", "no accelerator type v5litepod-16", "regions-zones"),
        ("PERMISSION_DENIED", "Permission 'tpu.nodes.create' denied", "roles/tpu.admin"),
        (
            "PERMISSION_DENIED",
            "Cloud TPU API has not been used in project 1 before or it is disabled",
            "gcloud services enable tpu.googleapis.com --project my-project",
        ),
        ("UNAUTHENTICATED", "no valid credential", "gcloud auth application-default login"),
        ("FAILED_PRECONDITION", "the network\nis not\tready", "the network is not ready"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(service, client, code, said, told):
    service.fail("CreateQueuedResource", grpc.StatusCode[code], said)
    line = refusal(client.create, asked())
    assert told in line
    assert service.count("CreateQueuedResource") == 1  # and not tried again


def test_a_quota_that_the_operation_runs_into(service, client):
    service.operation_error = (8, "Quota exceeded for quota metric 'x.googleapis.com/v5e_chips'")
    assert "quota x.googleapis.com/v5e_chips of" in refusal(
        client.create, asked(), kind=queue.Exhausted
    )


PER_MINUTE = "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute'"


@pytest.mark.parametrize("said", [PER_MINUTE, "RATE_LIMIT_EXCEEDED", "CallsPerMinutePerProject"])
def test_a_limit_on_calls_is_not_the_quota_of_chips(service, client, said):
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    service.fail("CreateQueuedResource", exhausted, said, times=2)
    assert client.create(asked()).launch == ID
    assert service.count("CreateQueuedResource") == 3


@pytest.mark.parametrize("said", [PER_MINUTE, "Quota exceeded"])
def test_only_a_creation_can_run_out_of_chips(service, client, said):
    service.add(asked())
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    for method in ("GetQueuedResource", "DeleteQueuedResource"):
        service.fail(method, exhausted, said, times=2)
    assert client.delete("pit", ID) is True
    assert service.count("DeleteQueuedResource") == 3
    service.fail("ListQueuedResources", exhausted, said, times=10_000)
    impatient = queue.Client("my-project", "us-west4-a", patience_s=0.1, pause_s=0.01)
    assert "not reached" in refusal(impatient.list, kind=queue.Unreachable)


def test_a_limit_on_calls_that_the_operation_runs_into(service, client):
    service.operation_error = (8, PER_MINUTE)
    assert "not reached" in refusal(client.create, asked(), kind=queue.Unreachable)


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "NOT_FOUND", "RESOURCE_EXHAUSTED"])
def test_a_creation_that_was_taken_is_none_refused_where_nobody_may_look(
    service, client, code, monkeypatch
):
    monkeypatch.setattr(queue, "OPERATION_S", 0.1)
    service.slow_operations = 2
    service.fail("GetOperation", grpc.StatusCode[code], "tpu.operations.get denied", times=10_000)
    assert client.create(asked()).state == "ACCEPTED"
    denied = grpc.StatusCode.PERMISSION_DENIED
    service.fail("GetQueuedResource", denied, "tpu.queuedResources.get denied")
    assert client.create(asked("other")).state == "CREATING"


def test_why_it_failed_is_told(service, client):
    service.histories["pit"] = [[("FAILED", 3, "no such\naccelerator.")], [("SUSPENDED", "USER")]]
    client.create(asked())
    found = client.get("pit")
    assert (found.state, found.code, found.reason) == ("FAILED", 3, "no such accelerator")
    client.delete("pit", ID)
    while client.get("pit"):
        pass
    client.create(asked())
    assert client.get("pit").by_user


# Deleting --------------------------------------------------------------------------------


def test_what_runs_is_deleted_with_its_nodes(service, client):
    service.histories["pit"] = [["ACTIVE"]]
    client.create(asked())
    client.get("pit")
    assert client.delete("pit", ID) is True
    assert client.delete("pit", ID) is False  # it is on its way
    assert client.get("pit") is None


@pytest.mark.parametrize("launch", ["f" * 12, ""])
def test_what_another_launch_created_is_left_alone(service, client, launch):
    service.add(asked())
    assert "left alone" in refusal(client.delete, "pit", launch)
    assert service.count("DeleteQueuedResource") == 0


@pytest.mark.parametrize("labels", [{}, {"pit-jax-launch": ""}])
def test_what_nobody_labelled_is_left_alone(service, client, labels):
    service.add(asked())
    service.resources["pit"].tpu.node_spec[0].node.labels = labels
    refusal(client.delete, "pit", ID)
    refusal(client.delete, "pit", "")
    assert service.count("DeleteQueuedResource") == 0


# Credentials -----------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["tpu.example.com:80", "10.0.0.1:80", "127.0.0.1", "[::2]:1"])
def test_an_endpoint_is_on_this_machine(monkeypatch, endpoint):
    monkeypatch.setenv(queue.ENDPOINT, endpoint)
    assert "of this machine" in refusal(queue.Client, "my-project", "us-west4-a")


def test_without_credentials_a_login_is_advised(monkeypatch, tmp_path):
    monkeypatch.delenv(queue.ENDPOINT, raising=False)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    line = refusal(queue.Client, "my-project", "us-west4-a", kind=queue.NoLogin)
    assert "gcloud auth application-default login" in line


def test_a_metadata_server_that_is_away_is_waited_for(monkeypatch):
    def away(**options):
        raise TransportError("the metadata server does not answer")

    monkeypatch.delenv(queue.ENDPOINT, raising=False)
    monkeypatch.setattr("google.auth.default", away)
    line = refusal(queue.Client, "my-project", "us-west4-a", kind=queue.Unreachable)
    assert line.startswith("Cloud TPU was not reached (the metadata server does not answer)")


def logged_in(service, *errors) -> tuple[queue.Client, Login]:
    login = Login(*errors)
    channel = service.channel(login)
    return queue.Client("my-project", "us-west4-a", 0.2, 0.01, channel), login


@pytest.mark.parametrize(
    "error",
    [
        TransportError("HTTPSConnectionPool(host='oauth2.googleapis.com'): Max retries exceeded"),
        RefreshError(TransportError("Failed to retrieve http://metadata.google.internal")),
        RefreshError("temporarily_unavailable: try later", {}, retryable=True),
    ],
)
def test_a_login_that_cannot_be_renewed_for_a_moment_is_tried_again(service, error):
    service.add(asked())
    client, login = logged_in(service, error, error)
    assert client.get("pit").launch == ID
    assert login.renewals == 3
    client, _ = logged_in(service, *[error] * 1000)
    assert "try again later" in refusal(client.get, "pit", kind=queue.Unreachable)


@pytest.mark.parametrize(
    "error",
    [
        RefreshError("invalid_grant: Token has been expired or revoked.", {"error": "..."}),
        RefreshError("unauthorized_client: Unauthorized", {"error": "unauthorized_client"}),
        RefreshError("Reauthentication is needed. Please run `gcloud auth ...`"),
    ],
)
def test_a_login_that_was_taken_back_is_not_tried_again(service, error):
    client, login = logged_in(service, *[error] * 9)
    line = refusal(client.get, "pit", kind=queue.NoLogin)
    assert "gcloud auth application-default login" in line
    assert login.renewals == 1
