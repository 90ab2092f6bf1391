"""What is asked of GKE for one launch: every value checked, then the JobSet's manifest.

A slice is a Job of one pod a host; JobSet starts and restarts all of them together. In every
pod runs what runs on a TPU VM, pit_jax.launch.worker: its supervisor restarts a trainer that
crashed, writes status.json, heartbeat.json and logs/, and gives up; JobSet is there for pods
and nodes that are lost, and tells the two apart by the exit code, see pod.py. GKE itself tells
each pod which worker of which slice it is.

Sources: the field descriptions of jobset.x-k8s.io/v1alpha2 and batch/v1;
docs.cloud.google.com/kubernetes-engine/docs/how-to/{tpus,tpu-multislice};
jobset.sigs.k8s.io/docs/tasks/{failure_policy,tpu_multislice}. onJobFailureMessagePatterns
needs JobSet 0.10 or later. The end of the message that it is matched with, "matching FailJob
rule at index N", is that of the Job controller of Kubernetes (pod_failure_policy.go).
"""

import dataclasses
import re
from typing import Any

from pit_jax.errors import ConfigError
from pit_jax.launch import accelerators, startup, upload
from pit_jax.launch import request as requests
from pit_jax.launch.pod import FINAL_CODES, STOPPED_CODES

GROUP, VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"
NAME_LABEL, LABEL = requests.NAME_LABEL, requests.LABEL
WORKDIR = "pit-jax-workdir"  # annotation: the work directory, which no label could hold
# The supervisor waits 600 s for a checkpoint after SIGTERM, and writes its last status then.
GRACE_S = 660

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123
_PATTERNS = {
    "namespace": (_LABEL, "a namespace: lower-case letters, digits and hyphens"),
    "queue": (_LABEL, "a Kueue local queue: lower-case letters, digits and hyphens"),
    "service_account": (
        rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*",
        "the name of a Kubernetes service account, which Workload Identity ties to a Google one",
    ),
    "image": (
        r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,300}(?:@sha256:[0-9a-f]{64})?",
        "a container image such as us-docker.pkg.dev/PROJECT/REPOSITORY/pit_jax:TAG",
    ),
}


@dataclasses.dataclass(frozen=True)
class JobSet:
    """One launch on GKE, checked.

    Attributes:
      retries: restarts of the whole set that count, of lost pods and the like.
      data: gs:// place, mounted read-only by GKE's Cloud Storage FUSE driver.

    Raises:
      ConfigError: from the constructor, in one line about the first field that is wrong.
    """

    name: str
    id: str
    workdir: str
    accelerator: str
    image: str
    slices: int = 1
    spot: bool = False
    service_account: str | None = None
    queue: str | None = None
    namespace: str = "default"
    retries: int = 5
    data: str | None = None

    def __post_init__(self) -> None:
        for field in ("name", "id", "workdir"):
            requests.check(field, getattr(self, field))
        if not self.image:
            raise ConfigError(
                "--image is missing: a container image that holds pit_jax[tpu,launch]"
            )
        for field, (pattern, advice) in _PATTERNS.items():
            value = getattr(self, field)
            if value is not None and not re.fullmatch(pattern, value):
                flag = field.replace("_", "-")
                raise ConfigError(f"--{flag} {ascii(value)[:60]}: write {advice}")
        if self.data is not None:
            requests.check("data", self.data)
            if "," in self.data:  # would end one of the driver's options and begin another
                raise ConfigError(f"--data {self.data[:60]}: on GKE without a comma")
        where = accelerators.find(self.accelerator, self.slices)
        if self.slices > 1 and where.hosts == 1:
            raise ConfigError(
                f"--slices {self.slices}: GKE joins slices of several hosts, and {where.name} is"
                " one host: take a larger --accelerator"
            )

    def manifest(self) -> dict[str, Any]:
        """The JobSet, as JSON that the API server takes."""
        where = accelerators.find(self.accelerator, self.slices)
        labels = {NAME_LABEL: self.name, LABEL: self.id}
        queue = {"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {}
        annotations = {WORKDIR: self.workdir.rstrip("/")}
        # A Job a node pool, and all its pods in that one: a slice's chips are wired together.
        # Of one host there are many in a node pool, and each is a slice.
        if where.hosts > 1:
            exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
            annotations[exclusive] = "cloud.google.com/gke-nodepool"
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "JobSet",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": labels | queue,
                "annotations": annotations,
            },
            "spec": {
                "failurePolicy": self._failure_policy(),
                "replicatedJobs": [
                    {
                        "name": "slice",
                        "replicas": self.slices,
                        "template": {"spec": self._job(where, labels)},
                    }
                ],
            },
        }

    def _failure_policy(self) -> dict[str, Any]:
        by_rule = {"onJobFailureReasons": ["PodFailurePolicy"]}
        return {
            "maxRestarts": self.retries,
            "rules": [
                {
                    "name": "stopped",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    **by_rule,
                    "onJobFailureMessagePatterns": ["matching FailJob rule at index [01]$"],
                },
                {"name": "final", "action": "FailJobSet", **by_rule},
            ],
        }

    def _job(self, where: accelerators.Accelerator, labels: dict[str, str]) -> dict[str, Any]:
        pod: dict[str, Any] = {"metadata": {"labels": labels}, "spec": self._pod(where)}
        if self.data:
            pod["metadata"]["annotations"] = {"gke-gcsfuse/volumes": "true"}
        return {
            "completionMode": "Indexed",
            "completions": where.hosts,
            "parallelism": where.hosts,
            "backoffLimit": 0,  # a slice of fewer hosts computes nothing: JobSet restarts all
            "podFailurePolicy": {
                "rules": [  # the failure policy names them by their place
                    {
                        "action": "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    _on_exit(STOPPED_CODES),
                    _on_exit(FINAL_CODES),
                ]
            },
            "template": pod,
        }

    def _pod(self, where: accelerators.Accelerator) -> dict[str, Any]:
        place = self.workdir.rstrip("/")
        command = ["python", "-m", "pit_jax.launch.pod"]
        command += ["--config", upload.config_place(place), "--workdir", place]
        command += ["--launch", self.id, "--name", self.name]
        chips = {"google.com/tpu": str(where.chips_a_host)}
        selector = {
            "cloud.google.com/gke-tpu-accelerator": where.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": where.shape,
        }
        # A container's own 64 MiB are too little for the batches of data workers.
        volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
        if self.data:
            volumes.append({"name": "data", "csi": _gcsfuse(self.data)})
            mounts.append({"name": "data", "mountPath": startup.DATA_DIR, "readOnly": True})
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": GRACE_S,
            "nodeSelector": selector,
            "containers": [
                {
                    "name": "worker",
                    "image": self.image,
                    "command": command,
                    "resources": {"requests": chips, "limits": chips},
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        }
        if self.service_account:
            pod["serviceAccountName"] = self.service_account
        if self.spot:
            spot = {"key": "cloud.google.com/gke-spot", "value": "true"}
            selector[spot["key"]] = spot["value"]
            pod["tolerations"] = [spot | {"operator": "Equal", "effect": "NoSchedule"}]
        return pod


def _on_exit(codes: tuple[int, ...]) -> dict[str, Any]:
    matched = {"containerName": "worker", "operator": "In", "values": list(codes)}
    return {"action": "FailJob", "onExitCodes": matched}


def _gcsfuse(place: str) -> dict[str, Any]:
    bucket, _, folder = place.removeprefix("gs://").strip("/").partition("/")
    options = f"implicit-dirs,only-dir={folder}" if folder else "implicit-dirs"
    return {
        "driver": "gcsfuse.csi.storage.gke.io",
        "readOnly": True,
        "volumeAttributes": {"bucketName": bucket, "mountOptions": options},
    }
