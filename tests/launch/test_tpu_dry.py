"""`pit-jax launch --target tpu --dry-run`: what it prints, and what it refuses."""

import json
import os
import re
import shlex
import types as builtin

import pytest

from pit_jax import cli, configfile
from pit_jax.launch import money, startup, tpu

from .test_tpu import CONFIG, words


def dry(*more: str, workdir: str = "gs://my-bucket/runs/pit") -> int:
    return cli.run(words(workdir, *more, "--dry-run"))


@pytest.fixture
def nothing(monkeypatch):
    """No credentials, no network: whoever asks for either fails."""
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "CLOUDSDK_")):
            monkeypatch.delenv(name)

    def refused(*args, **kwargs):
        raise AssertionError("a dry run asked for the network or credentials")

    import google.auth

    monkeypatch.setattr(google.auth, "default", refused)
    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr(money, "preflight", refused)


def test_a_dry_run_prints_everything_and_needs_nothing(nothing, capsys):
    assert dry("--spot", "--slices", "2", "--price-per-chip-hour", "1.2") == 0
    out = capsys.readouterr().out
    assert out.startswith("start-up script of every worker\n  #!/bin/bash\n")
    shown, _ = json.JSONDecoder().raw_decode(out[out.index("\n{") + 1 :])
    (spec,) = shown["tpu"]["node_spec"]
    assert spec["node"]["accelerator_type"] == "v5litepod-8"
    assert spec["multislice_params"] == {"node_count": 2, "node_id_prefix": "pit"}
    assert shown["spot"] == {}
    summary = out[out.index("\n\npit in PROJECT, us-west4-a\n  slice         2 slices of v5lite") :]
    assert summary.count("\n") <= 22  # it stands on a screen
    assert max(map(len, summary.splitlines())) <= 80
    launch = spec["node"]["labels"]["pit-jax-launch"]
    assert f"  labels        pit-jax-name=pit, pit-jax-launch={launch}\n" in summary
    assert "  account       the project's Compute Engine default account\n" in summary
    for name in ("config.json", "constraints.txt", "startup.sh"):
        assert re.search(rf"launch/{name} +[0-9,]+ bytes", summary)
    assert re.search(r"launch/pit_jax-0\.1\.0\+\S+\.whl +this checkout", summary)
    assert "19.20, from ACTIVE to its deletion" in summary
    assert '  exec >>"$LOG"' in out  # the script as it is
    assert "  ARGUMENTS=(--config gs://my-bucket/runs/pit/launch/config.json" in out
    words = summary[summary.index("pit-jax preflight --config") :].replace("\\\n", "")
    assert shlex.split(words)[4:] == ["--topology", "v5e-8", "--slices", "2"]


def test_whom_the_workers_act_as_is_in_the_summary(nothing, capsys):
    account = "pit-jax@my-project.iam.gserviceaccount.com"
    assert dry("--service-account", account) == 0
    assert f"  account       {account}\n" in capsys.readouterr().out


def test_the_mesh_is_not_held_against_the_slice_by_a_dry_run(nothing, capsys):
    assert dry("--config.mesh.data=7") == 0
    assert "nothing was created or compiled" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_refused(nothing, capsys):
    assert dry("--config.init_from=runs/earlier", "--config.train.wandb=mine") == 0
    out = capsys.readouterr().out
    notes = out[out.index("note: without --dry-run this is refused: config.init_from") :]
    assert notes.count("note: ") == 2
    assert "pit-jax preflight" not in notes  # at the very end
    assert max(map(len, notes.splitlines())) <= 80


def test_data_is_where_the_workers_will_have_it(nothing, capsys):
    for more in ("--data gs://my-bucket/data", "--data-disk imagenet"):
        assert dry(*more.split(), "--config.data.dir=/here") == 0
        mode = "disk" if "disk" in more else "stage"
        assert f"  DATA_MODE={mode}\n" in capsys.readouterr().out
    args = builtin.SimpleNamespace(data="gs://b/d", data_disk=None)
    config = configfile.load(CONFIG, ["--config.data.dir=/here"])
    assert tpu.for_workers(config, args).data.dir == startup.DATA_DIR
    assert config.data.dir == "/here"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--zone $(reboot)", "--zone"),
        ("--project ;reboot", "--project"),
        ("--name A", "--name"),
        ("--accelerator v5litepod-9", "did you mean v5litepod-8?"),
        ("--workdir gs://b/x", "a bucket's name has 3 or more"),
        ("--accelerator tpu7x-8", "--target gke"),
        ("--service-account me@example.com", "gserviceaccount.com"),
        ("--network ../x", "--network"),
        ("--subnetwork a/b", "--subnetwork"),
        ("--runtime-version $(x)", "--runtime-version"),
        ("--data-disk 'a b'", "--data-disk"),
        ("--data /local", "--data"),
        ("--data gs://b/$(x)", "--data"),
        ("--data-mode mount", "--data gs://"),
        ("--data gs://bbb/d --data-disk d", "one of them"),
        ("--requirement torch", "of pit_jax"),
        ("--requirement https://u:p@host/x.whl", "metadata"),
        ("--requirement '$(x)'", "--requirement"),
        ("--workdir runs/pit", "gs://BUCKET/DIRECTORY"),
        ("--workdir gs://my-bucket", "gs://BUCKET/DIRECTORY"),
        ("--workdir 'gs://my-bucket/a;b'", "gs://BUCKET/DIRECTORY"),
        ("--config.model.width=7", "config.model"),
        ("--config.no.such=7", "no.such"),
    ],
)
def test_refused_in_one_line(more, line, nothing, capsys):
    assert dry(*shlex.split(more)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert line in printed.err


def test_the_zone_has_to_be_named(nothing, capsys):
    given = [word for word in words("gs://my-bucket/pit", "--dry-run") if word != "us-west4-a"]
    given.remove("--zone")
    assert cli.run(given) == 2
    assert "--zone is missing, such as us-west4-a" in capsys.readouterr().err
