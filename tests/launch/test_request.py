"""What is asked of Cloud TPU: every value checked, and the message of the service's own types."""

import json
from types import SimpleNamespace

import pytest

from pit_jax.errors import ConfigError
from pit_jax.launch import request as requests
from pit_jax.launch import tpu
from pit_jax.launch.request import Request

tpu_types = pytest.importorskip("google.cloud.tpu_v2.types")

HOSTILE = (
    *("$(rm -rf /)", "`id`", "a;reboot", "a b", "a'b", 'a"b', "a\nb", "a\\b", "a|b", "a&b"),
    *("-rf", "--help", "../../etc", "a/../b", "ünïcode", "名", "a\0b", "\x1b[2J", "A" * 5000),
    *("", " ", "\n", "a\n", "*", "~", "%00", "{{x}}", "<a>"),
)
FIELDS = (
    *("name", "id", "project", "zone", "accelerator", "runtime_version", "service_account"),
    *("network", "subnetwork", "data_disk", "workdir"),
)


def made(**changes) -> Request:
    words = dict(
        name="pit-t",
        id="0123456789ab",
        project="my-project",
        zone="us-west4-a",
        accelerator="v5litepod-64",
        workdir="gs://my-bucket/runs/pit-t",
        script="#!/bin/bash\ntrue\n",
    )
    return Request(**(words | changes))


# Values --------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS)
def test_hostile_values_are_refused_in_one_printable_line(field):
    for hostile in HOSTILE:
        with pytest.raises(ConfigError) as refused:
            made(**{field: hostile})
        line = str(refused.value)
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 800
        assert field.replace("_", "-") in line


@pytest.mark.parametrize("prefix", ["gs://", "gs://my-bucket/", "gs://my-bucket/data/"])
def test_hostile_places_are_refused(prefix):
    harmless = {"-rf", "--help", "~", ""}  # as a part of an address they are no option
    for hostile in HOSTILE:
        if prefix == "gs://" or hostile not in harmless:
            with pytest.raises(ConfigError, match="write gs://BUCKET/DIRECTORY"):
                requests.check("data", prefix + hostile)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a"),
        ("name", "pit-t-2"),
        ("name", "a" * 40),
        ("project", "my-project-1"),
        ("project", "example.com:my-project"),
        ("zone", "us-central2-b"),
        ("zone", "northamerica-northeast1-c"),
        ("zone", "us-central1-ai1a"),
        ("runtime_version", "v2-alpha-tpuv6e"),
        ("runtime_version", "tpu-vm-tf-2.16.1-pjrt"),
        ("service_account", "pit-jax@my-project.iam.gserviceaccount.com"),
        ("service_account", "123456-compute@developer.gserviceaccount.com"),
        ("network", "default"),
        ("network", "projects/my-project/global/networks/net-1"),
        ("subnetwork", "projects/my-project/regions/us-west4/subnetworks/sub"),
        ("data_disk", "imagenet"),
        ("data_disk", "projects/my-project/zones/us-west4-a/disks/imagenet"),
        ("data_disk", "projects/my-project/regions/us-west4/disks/imagenet"),
        ("workdir", "gs://my-bucket/runs/pit=t/lr_1e-3"),
        ("workdir", "gs://my.bucket_1/a/"),
    ],
)
def test_what_google_cloud_takes_is_taken(field, value):
    assert getattr(made(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a" * 41),
        ("name", "a-"),
        ("name", "1a"),
        ("name", "Pit"),
        ("project", "short"),
        ("project", "ends-with-"),
        ("zone", "us-west4"),
        ("service_account", "me@example.com"),
        ("service_account", "me@gserviceaccount.com.example.com"),
        ("workdir", "gs://my-bucket"),
        ("workdir", "/local/path"),
        ("workdir", "s3://my-bucket/a"),
        ("workdir", "gs://my-bucket//a"),
        ("accelerator", "tpu7x-8"),
        ("slices", 0),
        ("slices", True),
        ("slices", 5000),
        ("slices", "2"),
    ],
)
def test_what_it_does_not_take_is_refused(field, value):
    with pytest.raises(ConfigError):
        made(**{field: value})


@pytest.mark.parametrize(
    "value",
    [
        "https://me:SECRET@host/x.whl",
        "HTTPS://me:SECRET@host/x.whl",
        "git+https://SECRET@github.com/a/b",
        "git+HTTPS://SECRET@github.com/a/b",
        "Git+Https://x-access-token:SECRET@github.com/a/b@v1",
        "pit_jax @ https://SECRET@host/x.whl",
        "pit_jax[tpu]@https://me:SECRET@host:8443/x.whl",
        "git+ssh://git:SECRET@host/pit.git@abc",
        "GIT+SSH://git:SECRET@host/pit.git",
        "pit_jax @ git+ssh://git:SECRET@host:22/x",
        "git+ssh://git@me:SECRET@host/x",
        "git+ssh://git%3ASECRET@host/x",
        "svn+ftp://me:SECRET@host/x",
        "ssh://me:SECRET@host/x",
        "https:/me:SECRET@host/x.whl",
        "pit_jax @ SECRET@host",
        "https://host/pit_jax-0.1-py3-none-any.whl?private_token=SECRET",
        "git+https://github.com/a/b?token=SECRET",
        "git+ssh://git@host/a/b?token=SECRET#egg=pit_jax",
        "https://me:SECRET*@host/x.whl",
    ],
)
def test_a_requirement_that_may_hold_a_secret_is_refused(value):
    with pytest.raises(ConfigError, match="metadata") as refused:
        requests.check_requirement(value)
    assert refused.value.exit_code == 2
    assert "SECRET" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        "pit_jax==0.2",
        "pit_jax>=1,<2",
        "pit_jax[data]==0.2+local",
        "https://host/pit_jax-0.1-py3-none-any.whl",
        "https://host:8443/pit_jax-0.1-py3-none-any.whl#sha256=00ff",
        "git+https://github.com/a/b@1a2b3c4",
        "git+https://github.com/a/b@v0.2#subdirectory=pit",
        "pit_jax @ git+https://github.com/a/b.git@feature/x",
        "git+ssh://git@github.com/a/b@v0.2",
        "git+ssh://github.com/a/b",
        "pit_jax @ git+ssh://git@host:2222/a/b.git",
    ],
)
def test_other_requirements_are_taken(value):
    assert requests.check_requirement(value) == value


def test_the_stand_in_of_a_dry_run_is_no_project(monkeypatch):
    assert tpu.project(SimpleNamespace(project=None, dry_run=True)) == requests.DRY
    assert made(project=requests.DRY).project == requests.DRY
    for dry_run in (False, True):
        with pytest.raises(ConfigError, match="--project 'PROJECT': write a project's ID"):
            tpu.project(SimpleNamespace(project=requests.DRY, dry_run=dry_run))


@pytest.mark.parametrize("value", ["--index-url=http://x", "a`id`", "a\n-r b", "$(x)", "é"])
def test_hostile_requirements_are_refused(value):
    with pytest.raises(ConfigError, match="--requirement"):
        requests.check_requirement(value)


@pytest.mark.parametrize("field", ["workdir", "data"])
@pytest.mark.parametrize("place", ["gs://b/x", "gs://Buck/ab", "gs://my-/ab", "gs://b"])
def test_a_bucket_s_name_that_is_none_is_what_is_named(field, place):
    with pytest.raises(ConfigError, match=r"gs://BUCKET/DIRECTORY; a bucket's name has 3 or more"):
        requests.check(field, place)


@pytest.mark.parametrize("place", ["gs://my-bucket", "gs://my-bucket/a;b", "gs://", "/Buck/ab"])
def test_a_bucket_s_name_is_not_blamed_for_what_else_is_wrong(place):
    with pytest.raises(ConfigError, match=r"write gs://BUCKET/DIRECTORY of letters"):
        requests.check("workdir", place)


@pytest.mark.parametrize(
    ("workdir", "name"),
    [
        ("gs://b/runs/pit-t", "pit-t"),
        ("gs://b/runs/PiT_T/2/", "run-2"),
        ("gs://b/model.width=192,lr=1e-3", "model-width-192-lr-1e-3"),
        ("gs://b/" + "a" * 100, "a" * 40),
        ("gs://b/" + "9" * 100, "run-" + "9" * 36),
    ],
)
def test_a_name_is_made_from_the_work_directory(workdir, name):
    assert requests.check("name", requests.name_of(workdir)) == name


def test_without_a_letter_no_name_can_be_made():
    with pytest.raises(ConfigError, match="--name is missing"):
        requests.name_of("gs://b/___")


def test_ids_are_random_and_valid():
    assert len({requests.check("id", requests.new_id()) for _ in range(100)}) == 100


# The message ---------------------------------------------------------------------------


def test_one_slice():
    message = made().to_message()
    assert isinstance(message, tpu_types.QueuedResource)
    (spec,) = message.tpu.node_spec
    assert spec.parent == "projects/my-project/locations/us-west4-a"
    assert spec.node_id == "pit-t"
    assert not spec.multislice_params
    node = spec.node
    assert node.accelerator_type == "v5litepod-64"
    assert node.runtime_version == "v2-alpha-tpuv5-lite"
    assert dict(node.metadata) == {"startup-script": "#!/bin/bash\ntrue\n"}
    assert dict(node.labels) == {"pit-jax-launch": "0123456789ab", "pit-jax-name": "pit-t"}
    assert list(node.service_account.scope) == ["https://www.googleapis.com/auth/cloud-platform"]
    assert node.service_account.email == ""  # the project's default
    assert node.network_config.enable_external_ips
    assert "spot" not in message
    assert not node.data_disks


def test_several_slices_on_spot_with_everything():
    message = made(
        slices=2,
        spot=True,
        runtime_version="v2-alpha-tpuv5-lite-next",
        service_account="pit-jax@my-project.iam.gserviceaccount.com",
        network="net",
        subnetwork="sub",
        data_disk="imagenet",
    ).to_message()
    (spec,) = message.tpu.node_spec
    assert spec.multislice_params.node_count == 2
    assert spec.multislice_params.node_id_prefix == "pit-t"
    assert spec.node_id == ""
    assert "spot" in message
    assert spec.node.runtime_version == "v2-alpha-tpuv5-lite-next"
    assert spec.node.service_account.email == "pit-jax@my-project.iam.gserviceaccount.com"
    assert (spec.node.network_config.network, spec.node.network_config.subnetwork) == ("net", "sub")
    (disk,) = spec.node.data_disks
    assert disk.source_disk == "projects/my-project/zones/us-west4-a/disks/imagenet"
    assert disk.mode == tpu_types.AttachedDisk.DiskMode.READ_ONLY


def test_a_whole_disk_name_stays_what_it_is():
    place = "projects/other-project/zones/us-west4-a/disks/imagenet"
    (disk,) = made(data_disk=place).to_message().tpu.node_spec[0].node.data_disks
    assert disk.source_disk == place


def test_the_message_goes_over_the_wire_and_back():
    message = made(slices=3, spot=True).to_message()
    kind = tpu_types.QueuedResource
    assert kind.deserialize(kind.serialize(message)) == message


def test_launch_json_holds_the_very_same_request():
    first = made(slices=2, spot=True, data_disk="imagenet", network="net")
    again = Request.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first
    kind = tpu_types.QueuedResource
    assert kind.serialize(again.to_message()) == kind.serialize(first.to_message())


@pytest.mark.parametrize(
    "change", [{"script": None}, {"name": "$(x)"}, {"accelerator": 5}, {"slices": "2"}, None]
)
def test_a_request_that_was_tampered_with_is_refused(change):
    with pytest.raises(ConfigError):
        Request.from_json(None if change is None else made().to_json() | change)


def test_what_is_shown_has_no_empty_fields():
    shown = made().shown()
    text = json.dumps(shown)
    assert '""' not in text
    assert "null" not in text
    assert "true\n" not in text  # the script is shown by itself
    assert made(spot=True).shown()["spot"] == {}


def test_without_the_client_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "google.cloud.tpu_v2", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[launch\]"):
        made().to_message()
