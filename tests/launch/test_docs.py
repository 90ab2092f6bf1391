"""Every command of docs/launch.md is one: parsed by the grammar, and launches run dry."""

import pathlib
import re
import shlex

import pytest

from pit_jax import cli, grammar, launch_grammar

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "launch.md"


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


OURS = [line for line in commands() if line.startswith("pit-jax ")]
LAUNCHES = [line for line in OURS if line.startswith("pit-jax launch --")]


def test_the_page_shows_only_commands_that_are_known():
    assert {line.split()[0] for line in commands()} == {"pit-jax", "gcloud"}
    assert {shlex.split(line)[2] for line in OURS if line.startswith("pit-jax launch ")} >= {
        *("list", "status", "logs", "stop", "watch", "--config", "--sweep")
    }


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
    inline = re.findall(r"`([^`\n]*)`", PAGE.read_text())
    named = {flag for text in inline for flag in re.findall(r"--[a-z][-a-z]+", text)}
    assert named
    assert named <= known
