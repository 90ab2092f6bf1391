"""Every command of docs/launch.md is one: parsed by the grammar, and launches run dry."""

import configparser
import pathlib
import re
import shlex

import pytest

from pit_jax import cli, grammar
from pit_jax.launch import accelerators

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "launch.md"

# Of docs.cloud.google.com/sdk/gcloud/reference, kubernetes.io/docs/reference/kubectl and
# docs.docker.com/reference/cli: the commands that the page needs, what they are given, and the
# flags of theirs that it uses. Node pools are those of
# docs.cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice, quotas are named in
# docs.cloud.google.com/tpu/docs/quota.
_PROJECT, _ACCOUNT = "my-project", "[0-9A-Z]{6}(-[0-9A-Z]{6}){2}"
_SERVICE = r"(tpu|storage|cloudquotas|container|artifactregistry)\.googleapis\.com"
_TPU_SERVICE = r"tpu\.googleapis\.com"
_EMAIL = rf"pit-jax@{_PROJECT}\.iam\.gserviceaccount\.com"
_MEMBER = rf"(serviceAccount:{_EMAIL}|user:you@example\.com)"
_ROLE = (
    r"roles/(tpu\.admin|storage\.objectAdmin|artifactregistry\.reader"
    r"|container\.defaultNodeServiceAccount)"
)
_ON_ACCOUNT = r"roles/iam\.(serviceAccountUser|workloadIdentityUser)"
_POD = rf"serviceAccount:{_PROJECT}\.svc\.id\.goog\[default/pit-jax\]"
_ZONE, _REGION = "us-west4-a", "us-west4"
_REGISTRY = rf"{_REGION}-docker\.pkg\.dev"
_IMAGE = rf"{_REGISTRY}/{_PROJECT}/pit/pit_jax:1"
_JOBSET = r"https://github\.com/kubernetes-sigs/jobset/releases/download/v0\.1[0-9]\.[0-9]/"
_SET = r"(cifar/cifar100|imagenet64/imagenet2012@64|imagenet/imagenet2012)"
GOOGLES = {
    "gcloud auth login": ("", {}),
    "gcloud config set": ("project " + _PROJECT, {}),
    "gcloud billing accounts list": ("", {}),
    "gcloud billing projects link": (_PROJECT, {"--billing-account": _ACCOUNT}),
    "gcloud services enable": (f"{_SERVICE}( {_SERVICE})*", {}),
    "gcloud beta services identity create": ("", {"--service": _TPU_SERVICE}),
    "gcloud compute tpus accelerator-types list": ("", {"--zone": _ZONE}),
    "gcloud beta quotas info describe": (
        "TPUV5s(Preemptible)?Litepod(Serving)?PerProjectPerZoneForTPUAPI",
        {"--service": _TPU_SERVICE, "--project": _PROJECT},
    ),
    "gcloud beta quotas info list": ("", {"--service": _TPU_SERVICE, "--project": _PROJECT}),
    "gcloud storage buckets create": ("gs://my-bucket", {"--location": _REGION}),
    "gcloud storage rsync": (f"data/[a-z0-9@]+ gs://my-bucket/{_SET}", {"--recursive": ""}),
    "gcloud iam service-accounts create": ("pit-jax", {}),
    "gcloud iam service-accounts add-iam-policy-binding": (
        _EMAIL,
        {"--role": _ON_ACCOUNT, "--member": rf"{_MEMBER}|{_POD}"},
    ),
    "gcloud projects add-iam-policy-binding": (
        _PROJECT,
        {"--role": _ROLE, "--member": _MEMBER},
    ),
    "gcloud auth application-default login": ("", {}),
    "gcloud components install": ("kubectl gke-gcloud-auth-plugin", {}),
    "gcloud artifacts repositories create": (
        "pit",
        {"--location": _REGION, "--repository-format": "docker"},
    ),
    "gcloud auth configure-docker": (_REGISTRY, {}),
    "gcloud container clusters create": (
        "pit",
        {
            "--location": _ZONE,
            "--machine-type": "e2-standard-4",
            "--num-nodes": "[1-9]",
            "--service-account": _EMAIL,
            "--workload-pool": rf"{_PROJECT}\.svc\.id\.goog",
            "--addons": "GcsFuseCsiDriver",
        },
    ),
    "gcloud container clusters get-credentials": ("pit", {"--location": _ZONE}),
    "gcloud container node-pools create": (
        "v5e-64",
        {
            "--cluster": "pit",
            "--location": _ZONE,
            "--machine-type": "ct5lp-hightpu-4t",
            "--tpu-topology": "[0-9]+x[0-9]+",
            "--num-nodes": "[0-9]+",
            "--service-account": _EMAIL,
        },
    ),
    "gcloud container node-pools delete": ("v5e-64", {"--cluster": "pit", "--location": _ZONE}),
    "kubectl apply": ("", {"--server-side": "", "-f": rf"{_JOBSET}manifests\.yaml"}),
    "kubectl apply --dry-run=server": ("", {"-f": "-"}),
    "kubectl create serviceaccount": ("pit-jax", {}),
    "kubectl annotate serviceaccount": (
        rf"pit-jax iam\.gke\.io/gcp-service-account={_EMAIL}",
        {},
    ),
    "docker build": (r"\.", {"--platform": "linux/amd64", "--tag": _IMAGE}),
    "docker push": (_IMAGE, {}),
}


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands() -> list[str]:
    return [line for block in blocks() for line in block.splitlines() if line.strip()]


def in_the_text() -> list[str]:
    return re.findall(r"`([^`\n]+)`", PAGE.read_text())


def in_the_readme() -> list[str]:
    return re.findall("^pit-jax launch .*", (ROOT / "README.md").read_text(), re.MULTILINE)


def known(line: str) -> str:
    """The command of GOOGLES that a line is, the longest; "" of others."""
    words = shlex.split(line)
    names = [name for name in GOOGLES if words[: len(name.split())] == name.split()]
    return max(names, key=len, default="")


def options(line: str) -> tuple[list[str], dict[str, str]]:
    """What a command is given, and its flags; each of these has the next word, unless GOOGLES
    gives it none."""
    _, flags = GOOGLES[known(line)]
    left, given, found = shlex.split(line)[len(known(line).split()) :], [], {}
    while left:
        word = left.pop(0)
        if word == "-" or not word.startswith("-"):
            given.append(word)
        else:
            found[word] = left.pop(0) if flags.get(word) and left else ""
    return given, found


def is_right(line: str) -> bool:
    """Whether GOOGLES has the command, all its flags and everything that they are given."""
    if not known(line):
        return False
    expected, flags = GOOGLES[known(line)]
    given, found = options(line)
    return (
        bool(re.fullmatch(expected, " ".join(given)))
        and set(found) == set(flags)
        and all(re.fullmatch(flags[flag], value) for flag, value in found.items())
    )


PROGRAMS = ("gcloud", "kubectl", "docker")
THEIRS = [
    line for line in (*commands(), *in_the_text()) if line.startswith(PROGRAMS) and " " in line
]
OURS = [line for line in commands() if line.startswith("pit-jax ")]
LAUNCHES = [line for line in (*OURS, *in_the_readme()) if line.startswith("pit-jax launch --")]


def test_the_page_shows_only_commands_that_are_known():
    assert {line.split()[0] for line in commands()} == {"pit-jax", "pip", *PROGRAMS}
    assert {shlex.split(line)[2] for line in OURS if line.startswith("pit-jax launch ")} >= {
        *("list", "status", "logs", "stop", "watch", "--config", "--sweep")
    }


@pytest.mark.parametrize("line", THEIRS)
def test_the_command_is_right(line):
    assert is_right(line)


def test_the_page_uses_every_command_of_the_table():
    assert {known(line) for line in THEIRS} == {*GOOGLES}


@pytest.mark.parametrize(
    "line",
    [
        "gcloud service enable tpu.googleapis.com",
        "gcloud services enabel tpu.googleapis.com",
        "gcloud services enable tpu.googleapi.com",
        "gcloud services identity create --service tpu.googleapis.com",
        "gcloud beta services identity create --services tpu.googleapis.com",
        "gcloud beta services identity create tpu.googleapis.com",
        "gcloud billing projects link my-project --billing-acount 0X0X0X-0X0X0X-0X0X0X",
        "gcloud billing projects link my-project --billing-account 0X0X0X",
        "gcloud billing projects link my-project",
        "gcloud storage buckets create my-bucket --location us-west4",
        "gcloud storage buckets create gs://my-bucket --region us-west4",
        "gcloud storage rsync --recursively data/cifar100 gs://my-bucket/cifar/cifar100",
        "gcloud storage rsync --recursive data/cifar100 gs://mybucket/cifar/cifar100",
        "gcloud storage rsync --recursive data/cifar100 gs://my-bucket/cifar",
        "gcloud projects add-iam-policy-binding my-project --role roles/tpu.admin",
        "gcloud auth application-default-login",
        "gcould auth application-default login",
        "gcloud container clusters get-credentials pit --zones us-west4-a",
        "gcloud container node-pools delete v5e-64 --location us-west4-a",
        "kubectl apply --dry-run=serve -f -",
        "kubectl apply --server-side --file https://github.com/kubernetes-sigs/jobset",
        "docker build --tag us-west4-docker.pkg.dev/my-project/pit/pit_jax:1 .",
        "docker push us-west4-docker.pkg.dev/my-project/pit_jax:1",
    ],
)
def test_a_slip_in_a_command_is_seen(line):
    assert not is_right(line)


def test_what_has_to_come_first_does():
    order = [known(line) for line in commands() if known(line)]
    first = [
        "gcloud billing projects link",
        "gcloud services enable",
        "gcloud beta quotas info describe",
        "gcloud storage buckets create",
        "gcloud container clusters create",
        "gcloud container node-pools create",
    ]
    assert sorted(first, key=order.index) == first


def test_the_node_pool_is_the_slice_that_is_launched():
    (pool,) = [options(line)[1] for line in THEIRS if "node-pools create" in line]
    (launch,) = [line for line in LAUNCHES if "--target gke" in line]
    words = shlex.split(launch)
    slice_ = accelerators.find(words[words.index("--accelerator") + 1])
    assert (pool["--tpu-topology"], int(pool["--num-nodes"])) == (slice_.shape, slice_.hosts)
    assert pool["--machine-type"].endswith(f"-{slice_.chips_a_host}t")


def test_what_pip_installs_is_offered():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [line for line in commands() if line.startswith("pip ")]
    lines += [
        line for block in blocks("dockerfile") for line in block.splitlines() if "pip" in line
    ]
    extras = [re.search(r"'\.\[([a-z,]+)\]'$", line)[1].split(",") for line in lines]
    assert ["tpu", "launch"] in extras
    assert {name for some in extras for name in some} <= {*setup["options.extras_require"]}


def test_the_image_is_made_of_files_that_are_there():
    (text,) = blocks("dockerfile")
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    names = [name for some in copied for name in some]
    assert {"pit_jax", "setup.cfg", "pyproject.toml", "constraints.txt"} <= {*names}
    assert all((ROOT / name).exists() for name in names)


@pytest.mark.parametrize("line", OURS)
def test_the_grammar_takes_the_command(line):
    words = cli.parser()
    args, _ = grammar.parse(words, shlex.split(line)[1:])
    assert callable(args.function)


@pytest.mark.parametrize("line", LAUNCHES)
def test_the_launch_runs_dry(line, capsys, monkeypatch):
    """Without a project, credentials or a network; and without --dry-run it would be taken."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    words = shlex.split(line)[1:]
    assert cli.run([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0
    captured = capsys.readouterr()
    assert captured.out
    assert "is refused" not in captured.out + captured.err


def test_every_flag_in_the_text_is_in_the_grammar():
    verbs = cli.parser()._subparsers._group_actions[0].choices
    parsers = [verb for name, verb in verbs.items() if name.startswith("launch")]
    parsers += verbs["data"]._subparsers._group_actions[0].choices.values()
    offered = {flag for p in parsers for flag in re.findall(r"--[a-z][-a-z]+", p.format_help())}
    ours = [text for text in in_the_text() if not text.startswith(PROGRAMS)]
    named = {flag for text in ours for flag in re.findall(r"--[a-z][-a-z]+", text)}
    assert named
    assert named <= offered
