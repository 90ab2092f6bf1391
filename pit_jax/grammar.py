"""The grammar of the command line: verbs, their arguments, and what a wrong one is told."""

import argparse
import difflib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pit_jax import __version__, launch_grammar
from pit_jax.diffusion.names import SAMPLERS
from pit_jax.errors import ConfigError

_PURPOSE = """\
Trains Pixel Transformers, whose tokens are single pixels, beside Vision
Transformers on patches, and compares them: classification, masked
autoencoding and diffusion, to find out how much locality a vision model needs.
"""
_FIRST = """\
first steps:
  pit-jax train configs/digits.py:pit --workdir runs/pit
  pit-jax train configs/digits.py:vit/2 --workdir runs/vit
  pit-jax compare runs/pit runs/vit

`pit-jax VERB --help` explains a verb. `pit-jax show FILE[:ARG]` lists the
fields of a config, and --config.FIELD=VALUE overrides any of them.
"""
_CONFIG = (
    "a Python file with get_config(), and its argument, such as configs/digits.py:pit, or a run's"
    " config.json; override any field with --config.FIELD=VALUE, such as --config.optim.lr=1e-3"
)
_METAVARS = {"config": "FILE[:ARG]", "workdir": "DIR"}
_SAMPLERS = "; ".join(f"{family}: {', '.join(names)}" for family, names in SAMPLERS.items())


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line and ends with exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(_with_hint(message))


def parser(**functions: Callable) -> Parser:
    """The grammar of the command line.

    Args:
      functions: what each verb calls, by name; the first line of its docstring is the help.
    """
    main = Parser(
        "pit-jax",
        description=_PURPOSE,
        epilog=_FIRST,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--version", action="version", version=__version__)
    verbs = main.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    def verb(
        name: str, function: Callable, among: Any = verbs, line: str = ""
    ) -> argparse.ArgumentParser:
        help_line = line or function.__doc__.splitlines()[0]
        # An action of launch is listed by `launch --help`, as a verb's own words are.
        listed = {} if " " in name else {"help": help_line}
        sub = among.add_parser(name, **listed, description=help_line, allow_abbrev=False)
        sub.set_defaults(function=function, parser=sub)
        return sub

    def config(sub: Any) -> None:
        sub.add_argument("--config", metavar="FILE[:ARG]", help=_CONFIG)

    def workdir(sub: argparse.ArgumentParser, of: str) -> None:
        sub.add_argument("--workdir", metavar="DIR", help=of)

    sub = verb("train", functions["train"])
    config(sub)
    workdir(sub, "run directory, local or gs://; new, or of a run that goes on")
    needs(sub, "config", "workdir")
    sub.add_argument(
        "--profile", metavar="FIRST:LAST", help="write a profiler trace of these steps"
    )
    sub = verb("eval", functions["evaluate"])
    workdir(sub, "directory of the run")
    needs(sub, "workdir")
    sub.add_argument(
        "--step", type=int, metavar="N", help="step of the checkpoint; the newest by default"
    )
    sub.add_argument(
        "--probe",
        nargs="+",
        default=(),
        choices=("linear", "knn", "fewshot"),
        help="probe the representation instead, whatever the task",
    )
    sub.add_argument(
        "--locality",
        action="store_true",
        help="measure how local the model is instead: attention distance, positions,"
        " receptive field, accuracy on changed images",
    )
    sub.add_argument(
        "--samples",
        metavar="FILE|DIR",
        help="measure what `pit-jax sample` wrote instead, with config.eval.features",
    )
    sub = verb("sample", functions["sample"])
    workdir(sub, "directory of the run")
    needs(sub, "workdir")
    sub.add_argument("--out", required=True, metavar="DIR", help="where the images are written")
    sub.add_argument("--num", type=int, metavar="N", help="how many images")
    sub.add_argument(
        "--guidance", type=float, metavar="SCALE", help="classifier-free guidance; 1 is none"
    )
    sub.add_argument("--steps", type=int, metavar="N", help="sampling steps")
    sub.add_argument("--sampler", metavar="NAME", help=_SAMPLERS)
    sub.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="class numbers, taken in turn; or balanced, random or unconditional; by default"
        " config.sample.labels",
    )
    sub.add_argument("--seed", type=int, metavar="N", help="image i is a function of (seed, i)")
    sub.add_argument("--batch-size", type=int, metavar="N", help="images generated at once")
    sub.add_argument(
        "--step", type=int, metavar="N", help="step of the checkpoint; the newest by default"
    )
    sub.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="sample from the moving average of the weights; the default where there is one",
    )
    sub = verb("show", functions["show"])
    config(sub)
    needs(sub, "config")
    sub = verb("preflight", functions["preflight"])
    what = sub.add_mutually_exclusive_group()
    config(what)
    needs(sub, "config", instead="all")
    what.add_argument("--all", action="store_true", help="every config in configs/, as a table")
    sub.add_argument("--topology", required=True, metavar="NAME", help="such as v5e-256")
    sub.add_argument(
        "--slices", type=int, default=1, metavar="N", help="how many slices of that topology; 1"
    )
    sub.add_argument(
        "--find-batch", action="store_true", help="find the largest batch, or what makes it fit"
    )
    sub.add_argument(
        "--price-per-chip-hour", type=float, metavar="PRICE", help="also say what the run costs"
    )
    sub.add_argument("--json", metavar="OUT", help="also write what was found to this file")
    sub = verb("bench", functions["bench"])
    config(sub)
    needs(sub, "config")
    sub.add_argument(
        "--against",
        metavar="torch|FILE[:ARG]",
        help="alternate with the same in PyTorch, or with another config (same overrides)",
    )
    sub.add_argument(
        "--input-only",
        action="store_true",
        help="measure what one core decodes, crops and resizes instead, beside PIL",
    )
    sub.add_argument(
        "--steps",
        type=int,
        default=10,
        metavar="N",
        help="how many turns, each of a step or of half a second of steps",
    )
    sub.add_argument("--json", metavar="OUT", help="also write the result there")
    sub = verb("sweep", functions["sweep"])
    sub.add_argument("file", metavar="FILE[:ARG]", help="Python file that defines sweep()")
    sub.add_argument(
        "--workdir", required=True, metavar="DIR", help="directory of the sweep, local or gs://"
    )
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="how many runs at once")
    part = sub.add_mutually_exclusive_group()
    part.add_argument(
        "--only",
        metavar="INDEX|K/N",
        help="one point, or one of N shares of them (0/N, 1/N, ...), and what they start from",
    )
    part.add_argument("--shard", metavar="K/N", help="one of N shares of the points: 0/N, 1/N, ...")
    sub.add_argument("--dry-run", action="store_true", help="print the points, touch nothing")
    sub.add_argument(
        "--retries", type=int, default=2, metavar="N", help="how often a failed run starts again"
    )
    sub.add_argument(
        "--search", type=int, metavar="TRIALS", help="search the file's space() by Optuna instead"
    )
    sub.add_argument(
        "--storage",
        metavar="URL",
        help="database of a search; by default search.db in the directory",
    )
    sub = verb("compare", functions["compare"])
    sub.add_argument(
        "directories", nargs="+", metavar="DIR", help="directories of runs, or of a sweep"
    )
    sub.add_argument("--out", metavar="FILE.html", help="write a report: one file, with plots")
    sub.add_argument("--csv", metavar="FILE", help="write one row a run")
    sub.add_argument("--json", metavar="FILE", help="write the comparison")
    sub.add_argument("--plot", metavar="FILE.svg", help="write the report's key plot")
    sub.add_argument(
        "--baseline",
        default="",
        metavar="LABEL",
        help="the setting that differences are from; the first by default",
    )
    sub.add_argument(
        "--metric",
        default="",
        metavar="NAME",
        help="to compare by, such as eval/accuracy; the task's own by default",
    )
    sub = verb("weights", functions["weights"])
    sub.add_argument("direction", choices=("import", "export"), help="bring weights in or out")
    sub.add_argument("source", help="import: .safetensors file or directory; export: run directory")
    sub.add_argument("target", help="file or directory to write")
    sub.add_argument("--config", metavar="FILE[:ARG]", help="import: the model it becomes")
    sub.add_argument(
        "--format",
        choices=("pit_jax", "huggingface", "public"),
        default="huggingface",
        help="format of an export",
    )
    sub.add_argument(
        "--interpolate",
        action="store_true",
        help="import: resample learned positions to another image size",
    )
    launch_grammar.add(lambda name, line: verb(name, functions["launch"], line=line))
    help_line = "Prepare data sets, and what belongs to them."
    data = verbs.add_parser("data", help=help_line, description=help_line, allow_abbrev=False)
    data = data.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
    sub = verb("prepare", functions["data_prepare"], data)
    sub.add_argument(
        "name", help="a TensorFlow Datasets name, e.g. cifar100; to resize also folder or digits"
    )
    sub.add_argument("--data-dir", metavar="DIR", help="default: $TFDS_DATA_DIR")
    sub.add_argument(
        "--resize",
        type=int,
        metavar="N",
        help="write a copy at N × N pixels: the shorter side becomes N, the centre is cut out",
    )
    sub.add_argument("--squash", action="store_true", help="squeeze whole images into it instead")
    sub.add_argument("--split", nargs="+", metavar="SPLIT", help="splits to copy; all by default")
    sub.add_argument(
        "--out", metavar="DIR", help="where the copy NAME@N is put; by default the data directory"
    )
    sub.add_argument("--shards", type=int, metavar="N", help="how many files a split is written to")
    sub.add_argument(
        "--workers", type=int, metavar="N", help="how many processes; one a core by default"
    )
    sub.add_argument(
        "--skip-corrupt", action="store_true", help="leave out images that cannot be decoded"
    )
    sub = verb("latents", functions["data_latents"], data)
    config(sub)
    needs(sub, "config")
    sub.add_argument(
        "--vae",
        required=True,
        metavar="FILE|DIR",
        help="an autoencoder: ours, diffusers' or latent diffusion's, or the directory of a run",
    )
    sub.add_argument(
        "--out", required=True, metavar="DIR", help="directory to write the latents to"
    )
    sub.add_argument(
        "--splits",
        nargs="+",
        default=(),
        metavar="SPLIT",
        help="splits to encode; by default those that the config trains and evaluates on",
    )
    sub.add_argument("--shards", type=int, metavar="N", help="how many files a split is written to")
    sub.add_argument(
        "--batch-size", type=int, metavar="N", help="images encoded at once; 32 a device"
    )
    sub = verb("stats", functions["data_stats"], data)
    config(sub)
    needs(sub, "config")
    sub.add_argument("--out", required=True, metavar="FILE.npz", help="the file to write")
    sub.add_argument(
        "--features", default="", metavar="FILE|DIR", help="FID's Inception, or a classifier's run"
    )
    sub.add_argument("--images", action="store_true", help="write the images and no statistics")
    sub.add_argument("--split", metavar="SPLIT", help="the training split by default")
    sub.add_argument("--num", type=int, metavar="N", help="how many images, from all over the set")
    return main


def parse(main: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a command line, and its `--config.field=value` overrides.

    A verb's first need may stand without its flag: `pit-jax train configs/digits.py`.

    Raises:
      ConfigError: in one line, for what is missing, unknown or of another verb.
    """
    words = launch_grammar.joined(argv)
    _check_verb(main, words)
    args, rest = main.parse_known_args(words)
    if args.verb is None:
        return args, rest
    first, needs, instead = (getattr(args, name, None) for name in ("first", "needs", "instead"))
    given = instead and getattr(args, instead)
    if first and not given and getattr(args, first) is None and (bare := _bare(rest)):
        setattr(args, first, rest.pop(bare[0]))
    missing = [f"--{name}" for name in needs or () if getattr(args, name) is None and not given]
    _check_flags(rest, args, missing)
    if missing:
        raise ConfigError(f"the following arguments are required: {', '.join(missing)}")
    return args, rest


def needs(
    sub: argparse.ArgumentParser, first: str, *names: str, instead: str | None = None
) -> None:
    """What a verb cannot do without, the first of which may stand without its flag.

    argparse's own optional positional would take the value of an override for it.

    Args:
      sub: the verb's parser.
      first: the argument that a word without a flag is.
      *names: further ones.
      instead: an argument that stands for all of them.
    """
    sub.set_defaults(first=first, needs=(first, *names), instead=instead)
    words = [f"[--{first}] {_METAVARS[first]}", *(f"--{name} {_METAVARS[name]}" for name in names)]
    sub.usage = f"{sub.prog} {' '.join(words)} [options]"
    if first == "config" or sub.prog.endswith((" eval", " sample")):
        sub.usage += " [--config.FIELD=VALUE ...]"


def _check_verb(main: Parser, words: Sequence[str]) -> None:
    """Refuses a first word that is no verb, naming the one that was meant."""
    if not words or words[0].startswith("-"):
        return
    verbs = _verbs(main)
    if words[0] in verbs:
        return
    # `prepare` alone is meant for `data prepare`, and `export` for `weights export`.
    called = {name.split()[-1]: name for name in reversed(verbs)}
    called |= {"import": "weights import", "export": "weights export"}
    called |= {name: f"data {name}" for name in ("prepare", "latents", "stats")}
    near = difflib.get_close_matches(words[0], called, n=1)
    listed = ", ".join(name for name in verbs if " " not in name)
    hint = f"did you mean {called[near[0]]}?" if near else f"there is {listed}"
    raise ConfigError(f"there is no pit-jax {words[0]}; {hint}")


def _verbs(main: Parser) -> list[str]:
    (verbs,) = (action for action in main._actions if action.dest == "verb")
    return list(verbs.choices)


def _with_hint(message: str) -> str:
    """argparse's line about a choice that is none, with the nearest one."""
    found = re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
    if not found:
        return message
    name, given, listed = found.groups()
    choices = [choice.strip("' ") for choice in listed.split(",")]
    near = difflib.get_close_matches(given, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name.lower()} {given}: write one of {', '.join(choices)}{hint}"


def _bare(words: Sequence[str]) -> list[int]:
    """Where a word stands that is no flag, nor the value of the override before it."""
    from pit_jax.config import FIELDS

    found = []
    for at, (before, word) in enumerate(itertools.pairwise(["", *words])):
        name = before.lstrip("-").removeprefix("config.")
        switch = before.startswith("--noconfig.") or (name in FIELDS and FIELDS[name].type is bool)
        is_value = before.startswith("--") and "=" not in before and not switch
        if not word.startswith("-") and not is_value:
            found.append(at)
    return found


def _check_flags(words: Sequence[str], args: argparse.Namespace, missing: Sequence[str]) -> None:
    """Refuses flags that are none of the verb's; overrides and their values pass."""
    bare = _bare(words) if words else []
    for at, word in enumerate(words):
        if word.lstrip("-").startswith(("config.", "noconfig.")):
            continue
        if at in bare:
            hint = f"; did you mean {missing[0]} {word}?" if missing else ""
            raise ConfigError(f"unexpected argument {word}{hint}")
        if word.startswith("--"):
            raise ConfigError(f"unexpected argument {word}{_meant(word, args)}")
        if word.startswith("-") and not words[at - 1].startswith("--"):
            raise ConfigError(f"unexpected argument {word}")


def _meant(word: str, args: argparse.Namespace) -> str:
    """What may have been meant by a flag: another one of the verb, or a field of the config."""
    flag, is_given, value = word.partition("=")
    known = sorted(set(re.findall(r"--[a-z][\w-]*", args.parser.format_help())))
    if near := difflib.get_close_matches(flag, known, n=1, cutoff=0.85):
        return f"; did you mean {near[0]}?"
    from pit_jax.values import nearest_field

    takes_fields = hasattr(args, "config") or args.verb in ("eval", "sample", "sweep")
    name = nearest_field(flag.lstrip("-").replace("-", "_"), args.verb, sure=True)
    if name and takes_fields:
        return f"; did you mean --config.{name}{is_given}{value}?"
    near = difflib.get_close_matches(flag, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
