"""The JobSet of `pit-jax launch --target gke --dry-run`: held against the schemas and read."""

import shlex

import pytest
import yaml
from kubeflow_trainer_api import models
from kubernetes import client

from pit_jax import cli
from pit_jax.launch import accelerators, jobset, money, startup, worker
from pit_jax.launch import request as requests

from .fake_cluster import IMAGE, words

# The manifest ----------------------------------------------------------------------------


@pytest.fixture
def nothing(monkeypatch):
    """No kubeconfig, no network, nothing compiled."""

    def refused(*args, **kwargs):
        raise AssertionError("a dry run asked for the network, or compiled")

    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr(money, "preflight", refused)


def dry(line: str = "", workdir: str = "gs://my-bucket/runs/pit") -> int:
    return cli.run(words(workdir, *shlex.split(line), "--dry-run"))


def printed(line: str, capsys) -> dict:
    """The manifest of a dry run, as kubectl would read it."""
    assert dry(line) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return yaml.safe_load(captured.out)


def job_of(manifest: dict) -> dict:
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(manifest: dict) -> dict:
    return job_of(manifest)["template"]["spec"]


LINES = {
    "one host": "--accelerator v6e-8",
    "many hosts": "--accelerator v5p-128",
    "slices": "--slices 2 --accelerator v5litepod-256",
    "spot": "--spot",
    "everything": "--slices 3 --spot --queue tpus --namespace ml --service-account pit-jax"
    " --data gs://my-bucket/data/sets --config.launch.retries=9",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_every_field_is_one_that_the_schemas_know(line, nothing, capsys):
    """A field of no schema would be dropped on the way through the models."""
    manifest = printed(line, capsys)
    jobset_model = models.JobsetV1alpha2JobSet
    assert jobset_model.from_dict(manifest).to_dict() == manifest
    job = models.IoK8sApiBatchV1JobSpec.from_dict(job_of(manifest))
    assert job.to_dict() == job_of(manifest)
    assert _through_client(job_of(manifest)) == job_of(manifest)


def _through_client(job: dict) -> dict:
    return client.ApiClient().sanitize_for_serialization(client.V1JobSpec.from_dict(job))


def test_the_schemas_drop_what_they_do_not_know(nothing, capsys):
    """So that the test above can fail."""
    manifest = printed("", capsys)
    pod_of(manifest)["nodeSelectors"] = {}
    assert models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() != manifest
    assert _through_client(job_of(manifest)) != job_of(manifest)


@pytest.mark.parametrize(
    ("accelerator", "slices", "hosts", "chips", "label", "shape"),
    [
        ("v5litepod-1", 1, 1, 1, "tpu-v5-lite-podslice", "1x1"),
        ("v5litepod-8", 1, 1, 8, "tpu-v5-lite-podslice", "2x4"),
        ("v5e-16", 2, 4, 4, "tpu-v5-lite-podslice", "4x4"),
        ("v5litepod-256", 2, 64, 4, "tpu-v5-lite-podslice", "16x16"),
        ("v6e-16", 1, 4, 4, "tpu-v6e-slice", "4x4"),
        ("v4-16", 1, 2, 4, "tpu-v4-podslice", "2x2x2"),
        ("v5p-128", 4, 16, 4, "tpu-v5p-slice", "4x4x4"),
        ("tpu7x-128", 1, 16, 4, "tpu7x", "4x4x4"),
    ],
)
def test_a_slice_is_a_job_and_a_host_is_a_pod(
    accelerator, slices, hosts, chips, label, shape, nothing, capsys
):
    manifest = printed(f"--accelerator {accelerator} --slices {slices}", capsys)
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job, pod = job_of(manifest), pod_of(manifest)
    assert replicated["replicas"] == slices
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (
        hosts,
        hosts,
        "Indexed",
    )
    (container,) = pod["containers"]
    for kind in ("requests", "limits"):
        assert container["resources"][kind] == {"google.com/tpu": str(chips)}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    # A Job a node pool, but for single hosts, of which a pool has many.
    annotations = manifest["metadata"]["annotations"]
    exclusive = annotations.get("alpha.jobset.sigs.k8s.io/exclusive-topology")
    assert exclusive == ("cloud.google.com/gke-nodepool" if hosts > 1 else None)


def test_every_accelerator_has_a_manifest_and_the_longest_name_fits_a_pod():
    name = "a" * 40
    for accelerator in accelerators.names():
        where = accelerators.find(accelerator)
        asked = jobset.JobSet(name, "0" * 12, "gs://my-bucket/x", accelerator, IMAGE)
        (replicated,) = asked.manifest()["spec"]["replicatedJobs"]
        assert job_of(asked.manifest())["completions"] == where.hosts
        # JobSet-job-slice-host-suffix; a host name of DNS has 63 characters.
        assert len(f"{name}-{replicated['name']}-99-{where.hosts - 1}-abcde") <= 63


def test_the_pod_runs_the_worker_of_the_uploaded_config(nothing, capsys):
    manifest = printed("", capsys)
    (container,) = pod_of(manifest)["containers"]
    assert container["image"] == IMAGE
    python, flag, module, *rest = container["command"]
    assert (python, flag, module) == ("python", "-m", "pit_jax.launch.pod")
    args = worker.parser().parse_args(rest)
    assert args.config == "gs://my-bucket/runs/pit/launch/config.json"
    assert args.workdir == "gs://my-bucket/runs/pit"
    assert manifest["metadata"]["annotations"][jobset.WORKDIR] == args.workdir
    assert args.launch == manifest["metadata"]["labels"][jobset.LABEL]
    assert (args.name, args.project, args.zone) == ("pit", None, None)  # deletes no resource
    (shared,) = [one for one in pod_of(manifest)["volumes"] if one["name"] == "shm"]
    assert shared["emptyDir"] == {"medium": "Memory"}
    assert "env" not in container  # GKE's own


def test_options_are_where_they_belong(nothing, capsys):
    manifest = printed(LINES["everything"], capsys)
    assert manifest["metadata"]["namespace"] == "ml"
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpus"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 9
    pod = pod_of(manifest)
    assert pod["serviceAccountName"] == "pit-jax"
    assert pod["terminationGracePeriodSeconds"] > 600  # the supervisor's for a checkpoint
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (toleration,) = pod["tolerations"]
    assert toleration == {
        "key": "cloud.google.com/gke-spot",
        "operator": "Equal",
        "value": "true",
        "effect": "NoSchedule",
    }
    (volume,) = [one["csi"] for one in pod["volumes"] if "csi" in one]
    assert volume["readOnly"]
    template = job_of(manifest)["template"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert volume["volumeAttributes"] == {
        "bucketName": "my-bucket",
        "mountOptions": "implicit-dirs,only-dir=data/sets",
    }
    mounts = {one["name"]: one for one in pod["containers"][0]["volumeMounts"]}
    assert mounts["data"]["mountPath"] == startup.DATA_DIR
    assert set(mounts) == {one["name"] for one in pod["volumes"]}
    plain = printed("", capsys)
    assert "tolerations" not in pod_of(plain)
    assert "serviceAccountName" not in pod_of(plain)
    assert set(plain["metadata"]["labels"]) == {jobset.LABEL, jobset.NAME_LABEL}


# Dry and refused -------------------------------------------------------------------------


def test_a_dry_run_says_the_rest_in_comments(nothing, capsys):
    assert dry("--slices 2 --price-per-chip-hour 1.5 --config.init_from=runs/earlier") == 0
    out = capsys.readouterr().out
    assert "#   chips         32 on 8 hosts\n" in out
    assert "48.00" in out
    assert "# uploaded to gs://my-bucket/runs/pit/launch/config.json" in out
    note = out.partition("chip-hours:\n#   pit-jax ")[2]
    words, _, note = note.partition("# note: without --dry-run this is refused: config.init_from")
    words = shlex.split(words.replace("\\\n#", ""))
    assert words[-3:] == ["--slices", "2", "--config.init_from=runs/earlier"]
    assert note.count("\n") == 2
    comments = [line for line in out.splitlines() if line.startswith("#")]
    assert out.splitlines()[-len(comments) :] == comments  # last, where they are seen
    assert max(map(len, comments)) <= 80
    assert "&id" not in out


def test_only_options_of_gke_are_named(nothing, capsys):
    assert dry("--config.data.name=cifar10") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("lies # nowhere on the workers: give --data gs://...")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--name A", "--name"),
        ("--name 'a\nb'", "--name"),
        ("--name ''", "--name"),
        ("--namespace a.b", "--namespace"),
        ("--namespace ''", "--namespace"),
        ("--queue 'a: b'", "--queue"),
        ("--queue -a", "--queue"),
        ("--service-account me@my-project.iam.gserviceaccount.com", "Kubernetes service account"),
        ("--service-account a..b", "--service-account"),
        (f"--service-account {'.'.join(5 * ['a' * 60])}", "--service-account"),
        ("--image 'x y'", "--image"),
        ("--image ''", "--image is missing"),
        ("--image $(reboot)", "--image"),
        ("--data gs://my-bucket/a,o=rw", "without a comma"),
        ("--data /local", "--data"),
        ("--accelerator v5litepod-9", "did you mean v5litepod-8?"),
        ("--accelerator v5litepod-8 --slices 2", "take a larger --accelerator"),
        ("--workdir runs/pit", "--target gke writes to gs://BUCKET/DIRECTORY"),
        ("--workdir gs://my-bucket/$(x)", "gs://BUCKET/DIRECTORY"),
        ("--zone us-west4-a", "--zone is for --target tpu"),
        ("--watch", "--watch is for --target tpu"),
        ("--config.model.width=7", "config.model"),
    ],
)
def test_refused_in_one_line(more, line, nothing, capsys):
    assert dry(more) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert line in captured.err


def test_kubectl_reads_as_text_what_is_text(nothing, monkeypatch, capsys):
    """Its YAML knows more numbers and truths than PyYAML's."""
    monkeypatch.setattr(requests, "new_id", lambda: "12345678e012")
    assert dry("--name y") == 0
    out = capsys.readouterr().out
    assert "  name: 'y'\n" in out
    assert "    pit-jax-launch: '12345678e012'\n" in out
    assert "  - '12345678e012'\n" in out
    assert "12345678e012\n" not in out


def test_a_slash_at_the_end_is_of_no_account(nothing, capsys):
    assert dry(workdir="gs://my-bucket/runs/pit/") == 0
    out = capsys.readouterr().out
    assert "runs/pit//" not in out
    assert "runs/pit/\n" not in out


def test_the_image_has_to_be_named(nothing, capsys):
    given = [word for word in words("gs://my-bucket/pit", "--dry-run") if word != IMAGE]
    given.remove("--image")
    assert cli.run(given) == 2
    assert "--image is missing: a container image that holds pit_jax" in capsys.readouterr().err
