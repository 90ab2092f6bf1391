"""Every command of docs/launch.md is one: parsed by the grammar, and launches run dry."""

import pathlib
import re
import shlex

import pytest

from pit_jax import cli, grammar, launch_grammar

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "launch.md"


# Of docs.cloud.google.com/sdk/gcloud/reference: the commands that the page needs, what they are
# given, and the flags of theirs that it uses.
_PROJECT, _ACCOUNT = "my-project", "[0-9A-Z]{6}(-[0-9A-Z]{6}){2}"
_SERVICE = r"(tpu|storage)\.googleapis\.com"
_ROLE = "roles/(tpu.admin|storage.objectAdmin)"
_MEMBER = rf"serviceAccount:pit-jax@{_PROJECT}\.iam\.gserviceaccount\.com"
GCLOUD = {
    "config set": ("project " + _PROJECT, {}),
    "billing accounts list": ("", {}),
    "billing projects link": (_PROJECT, {"--billing-account": _ACCOUNT}),
    "services enable": (f"{_SERVICE}( {_SERVICE})*", {}),
    "beta services identity create": ("", {"--service": _SERVICE}),
    "storage buckets create": ("gs://my-bucket", {"--location": "us-west4"}),
    "storage cp": ("/data gs://my-bucket/data", {"--recursive": ""}),
    "iam service-accounts create": ("pit-jax", {}),
    "projects add-iam-policy-binding": (_PROJECT, {"--role": _ROLE, "--member": _MEMBER}),
    "auth application-default login": ("", {}),
}


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def in_the_text() -> list[str]:
    return re.findall(r"`([^`\n]+)`", PAGE.read_text())


def is_gcloud(line: str) -> bool:
    """Whether GCLOUD has the command, all its flags and everything that they are given."""
    program, *words = shlex.split(line)
    names = [name for name in GCLOUD if words[: len(name.split())] == name.split()]
    if program != "gcloud" or not names:
        return False
    (name,) = names
    expected, flags = GCLOUD[name]
    left, given, found = words[len(name.split()) :], [], {}
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            given.append(word)
        elif word not in flags:
            return False
        else:
            found[word] = left.pop(0) if flags[word] and left else ""
    return (
        bool(re.fullmatch(expected, " ".join(given)))
        and set(found) == set(flags)
        and all(re.fullmatch(flags[flag], value) for flag, value in found.items())
    )


GOOGLES = [line for line in (*commands(), *in_the_text()) if line.startswith("gcloud")]
OURS = [line for line in commands() if line.startswith("pit-jax ")]
LAUNCHES = [line for line in OURS if line.startswith("pit-jax launch --")]


def test_the_page_shows_only_commands_that_are_known():
    assert {line.split()[0] for line in commands()} == {"pit-jax", "gcloud"}
    assert {shlex.split(line)[2] for line in OURS if line.startswith("pit-jax launch ")} >= {
        *("list", "status", "logs", "stop", "watch", "--config", "--sweep")
    }


@pytest.mark.parametrize("line", GOOGLES)
def test_gcloud_has_the_command(line):
    assert is_gcloud(line)


def test_the_page_uses_every_command_of_the_table():
    assert {name for name in GCLOUD for line in GOOGLES if line.startswith(f"gcloud {name}")} == {
        *GCLOUD
    }


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
        "gcloud storage cp --recursively /data gs://my-bucket/data",
        "gcloud storage cp --recursive /data gs://mybucket/data",
        "gcloud projects add-iam-policy-binding my-project --role roles/tpu.admin",
        "gcloud auth application-default-login",
        "gcould auth application-default login",
    ],
)
def test_a_slip_in_a_gcloud_command_is_seen(line):
    assert not is_gcloud(line)


def test_billing_comes_before_the_services():
    order = [line.split()[1] for line in GOOGLES]
    assert order.index("billing") < order.index("services")


@pytest.mark.parametrize("line", OURS)
def test_the_grammar_takes_the_command(line):
    words = cli.parser()
    args, rest = words.parse_known_args(launch_grammar.joined(shlex.split(line)[1:]))
    grammar.check_flags(rest, args.parser)
    assert callable(args.function)


@pytest.mark.parametrize("line", LAUNCHES)
def test_the_launch_runs_dry(line, capsys, monkeypatch):
    """Without a project, credentials or a network."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    words = shlex.split(line)[1:]
    assert cli.run([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0
    assert capsys.readouterr().out


def test_every_flag_in_the_text_is_in_the_grammar():
    verbs = cli.parser()._subparsers._group_actions[0].choices
    parsers = [verb for name, verb in verbs.items() if name.startswith("launch")]
    parsers += verbs["data"]._subparsers._group_actions[0].choices.values()
    known = {flag for p in parsers for flag in re.findall(r"--[a-z][-a-z]+", p.format_help())}
    ours = [text for text in in_the_text() if not text.startswith("gcloud")]
    named = {flag for text in ours for flag in re.findall(r"--[a-z][-a-z]+", text)}
    assert named
    assert named <= known
