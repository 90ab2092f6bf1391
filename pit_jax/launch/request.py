"""What is asked of Cloud TPU for one launch: every value checked, then the queued resource.

Whatever a user writes is held against a pattern that a shell, a URL and a resource name can
all carry; the start-up script quotes it besides.
"""

import dataclasses
import re
import secrets
from typing import Any

from pit_jax.errors import ConfigError
from pit_jax.launch import accelerators
from pit_jax.launch.cloud_errors import NO_LIBRARIES

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LABEL = "pit-jax-launch"  # of what we create; its value is the launch's id
NAME_LABEL = "pit-jax-name"
DRY = "PROJECT"  # stands in a dry run where no project is known

_PROJECT = r"(?:[a-z0-9][-a-z0-9.]{0,61}:)?[a-z][-a-z0-9]{4,28}[a-z0-9]"
_RESOURCE = r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"
_ZONE = r"[a-z]{2,20}-[a-z]{2,20}[0-9]{1,2}-(?:ai[0-9])?[a-z]"
_REGION = r"[a-z]{2,20}-[a-z]{2,20}[0-9]{1,2}"
_HOST = r"[a-z0-9](?:[-a-z0-9.]{0,100}[a-z0-9])?"
_BUCKET = r"[a-z0-9][-a-z0-9_.]{1,220}[a-z0-9]"
_SEGMENT = r"(?!\.\.?(?:/|$))[A-Za-z0-9._~=+@,-]+"
# What a field may hold, and what its refusal advises.
_PATTERNS = {
    "name": (
        r"[a-z](?:[-a-z0-9]{0,38}[a-z0-9])?",
        "up to 40 lower-case letters, digits and hyphens, a letter first, no hyphen last",
    ),
    "id": (r"[0-9a-f]{12}", "twelve hexadecimal digits"),
    "project": (_PROJECT, "a project's ID such as my-project-1"),
    "zone": (_ZONE, "a zone such as us-west4-a"),
    "runtime_version": (
        r"[a-z0-9](?:[-a-z0-9._]{0,61}[a-z0-9])?",
        "a TPU software version such as v2-alpha-tpuv6e",
    ),
    "service_account": (
        rf"[a-z0-9](?:[-a-z0-9]{{0,61}}[a-z0-9])?@{_HOST}\.gserviceaccount\.com",
        "an address such as NAME@PROJECT.iam.gserviceaccount.com",
    ),
    "network": (
        rf"(?:projects/{_PROJECT}/global/networks/)?{_RESOURCE}",
        "a network's name, or projects/P/global/networks/NAME",
    ),
    "subnetwork": (
        rf"(?:projects/{_PROJECT}/regions/{_REGION}/subnetworks/)?{_RESOURCE}",
        "a subnetwork's name, or projects/P/regions/R/subnetworks/NAME",
    ),
    "data_disk": (
        rf"(?:projects/{_PROJECT}/(?:zones/{_ZONE}|regions/{_REGION})/disks/)?{_RESOURCE}",
        "a disk's name, or projects/P/zones/Z/disks/NAME",
    ),
    "workdir": (
        rf"gs://{_BUCKET}(?:/{_SEGMENT})+/?",
        "gs://BUCKET/DIRECTORY of letters, digits and . _ ~ = + @ , -",
    ),
    "data": (
        rf"gs://{_BUCKET}(?:/{_SEGMENT})*/?",
        "gs://BUCKET/DIRECTORY of letters, digits and . _ ~ = + @ , -",
    ),
    "requirement": (
        r"[A-Za-z0-9][A-Za-z0-9._~=<>!@+:/,#%&?\[\] -]{0,400}",
        "what pip installs, such as pit_jax==0.2 or git+https://HOST/REPOSITORY@COMMIT",
    ),
}
_LONGEST = {"workdir": 700, "data": 700}  # characters; of a bucket's objects 1024 bytes
# A requirement in which no secret has a place: of a name, or at an address that names no user,
# or over ssh one without a password, and asks no query.
_WITHOUT_SECRET = re.compile(
    r"[^@:/?]*"
    r"|(?:[^@:/?]*@\s*)?(?:(?:[a-z]+\+)?https?://|[a-z]+\+ssh://(?:[a-z0-9._-]+@)?)[^@/?#]+/[^?]*",
    re.IGNORECASE,
)


def check(field: str, value: str, flag: str | None = None) -> str:
    """The value, if it is one that `field` can hold.

    Raises:
      ConfigError: one line with the flag, the value and what to write.
    """
    pattern, advice = _PATTERNS[field]
    if not isinstance(value, str) or not (
        len(value) <= _LONGEST.get(field, 500) and re.fullmatch(pattern, value)
    ):
        bucket = re.match("gs://([^/]+)", str(value))
        if bucket and field in ("workdir", "data") and not re.fullmatch(_BUCKET, bucket[1]):
            advice = (
                "gs://BUCKET/DIRECTORY; a bucket's name has 3 or more lower-case letters, digits"
                " and - _ . and begins and ends with a letter or digit"
            )
        shown = ascii(value)[:60]
        raise ConfigError(f"--{flag or field.replace('_', '-')} {shown}: write {advice}")
    return value


def check_requirement(value: str) -> str:
    """A requirement for pip, without a secret: metadata can be read by the whole project.

    Raises:
      ConfigError: if it cannot be one, or names somebody's credentials.
    """
    if not _WITHOUT_SECRET.fullmatch(value):  # first: what is refused below is quoted
        raise ConfigError(
            "--requirement: write pit_jax==VERSION, git+https://HOST/PATH@TAG or"
            " git+ssh://git@HOST/PATH; a user, a password or a query (?...) in an address would"
            " stand in the instance's metadata for all to read"
        )
    return check("requirement", value)


def new_id() -> str:
    """Of a launch."""
    return secrets.token_hex(6)


def name_of(workdir: str) -> str:
    """A launch's name from the last part of its work directory.

    Raises:
      ConfigError: if no name can be made from it.
    """
    last = workdir.rstrip("/").rpartition("/")[2].lower()
    name = re.sub("-+", "-", re.sub("[^a-z0-9]", "-", last))[:40].strip("-")
    if name and not name[0].isalpha():
        name = f"run-{name}"[:40].strip("-")
    if not name:
        raise ConfigError(f"--name is missing: none can be made from --workdir {workdir[:60]}")
    return name


@dataclasses.dataclass(frozen=True)
class Request:
    """One queued resource, checked.

    Raises:
      ConfigError: from the constructor, in one line about the first field that is wrong.
    """

    name: str  # of the launch, the queued resource and its node
    id: str  # of the launch
    project: str
    zone: str
    accelerator: str
    workdir: str
    script: str  # what every worker runs at each boot
    slices: int = 1
    spot: bool = False
    runtime_version: str | None = None  # None: the accelerator's own
    service_account: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    data_disk: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            dry = field.name == "project" and value == DRY
            if field.name in _PATTERNS and value is not None and not dry:
                check(field.name, value)
        if type(self.slices) is not int or not 1 <= self.slices <= 4096:
            raise ConfigError(f"--slices {ascii(self.slices)[:20]}: one slice or more")
        found = accelerators.find(self.accelerator, self.slices)
        if found.runtime_version is None:
            raise ConfigError(
                f"--accelerator {found.name}: the Cloud TPU API does not offer it: --target gke"
            )
        object.__setattr__(self, "accelerator", found.name)

    @property
    def parent(self) -> str:
        return f"projects/{self.project}/locations/{self.zone}"

    def to_message(self) -> Any:
        """The `google.cloud.tpu_v2.QueuedResource` to create under `parent` as `name`.

        Raises:
          ConfigError: if the client library is missing.
        """
        tpu = _client_types()
        node = tpu.Node(
            accelerator_type=self.accelerator,
            runtime_version=self.runtime_version
            or accelerators.find(self.accelerator).runtime_version,
            description=f"pit-jax launch {self.name}",
            # Without an address of their own the workers could not install anything.
            network_config=tpu.NetworkConfig(
                network=self.network, subnetwork=self.subnetwork, enable_external_ips=True
            ),
            # Always, and with this scope: the default leaves buckets read-only.
            service_account=tpu.ServiceAccount(email=self.service_account, scope=[SCOPE]),
            labels={NAME_LABEL: self.name, LABEL: self.id},
            metadata={"startup-script": self.script},
        )
        if self.data_disk:
            disk = self.data_disk
            if "/" not in disk:
                disk = f"projects/{self.project}/zones/{self.zone}/disks/{disk}"
            mode = tpu.AttachedDisk.DiskMode.READ_ONLY
            node.data_disks = [tpu.AttachedDisk(source_disk=disk, mode=mode)]
        spec = tpu.QueuedResource.Tpu.NodeSpec(parent=self.parent, node=node)
        if self.slices > 1:
            spec.multislice_params = tpu.QueuedResource.Tpu.NodeSpec.MultisliceParams(
                node_count=self.slices, node_id_prefix=self.name
            )
        else:
            spec.node_id = self.name
        made = tpu.QueuedResource(tpu=tpu.QueuedResource.Tpu(node_spec=[spec]))
        if self.spot:
            made.spot = tpu.QueuedResource.Spot()
        return made

    def to_json(self) -> dict[str, Any]:
        """For launch.json; `from_json` makes the very same request of it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: Any) -> "Request":
        """Raises: ConfigError: if it is no request, or one that could not have been made."""
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            kept = {name: value for name, value in found.items() if name in known}
            for name in ("script", "accelerator"):
                if not isinstance(kept[name], str):
                    raise TypeError(name)
            return cls(**kept)
        except (AttributeError, KeyError, TypeError):
            raise ConfigError("launch.json holds no request: it was not written by us") from None

    def shown(self) -> dict[str, Any]:
        """The message as JSON, without what is at its default; the script is left out."""
        tpu = _client_types()
        found = tpu.QueuedResource.to_dict(
            self.to_message(),
            use_integers_for_enums=False,
            always_print_fields_with_no_presence=False,
        )
        for spec in found["tpu"]["node_spec"]:
            lines = len(self.script.splitlines())
            spec["node"]["metadata"]["startup-script"] = f"({lines} lines, see above)"
        return found


def _client_types() -> Any:
    try:
        from google.cloud.tpu_v2 import types
    except ImportError:
        raise ConfigError(NO_LIBRARIES) from None
    return types
