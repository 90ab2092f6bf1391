"""One command line of preflight: which configs, what is printed and written, how it ends."""

import glob
import json
import sys
from pathlib import Path
from typing import Any

import jax

from pit_jax import configfile
from pit_jax.errors import ConfigError, DoesNotFit, PitError, StorageError
from pit_jax.perf import preflight, preflight_report, topology
from pit_jax.perf.topology import Topology


def run(args: Any, overrides: list[str]) -> None:
    """Preflights one config or all of them, prints the report and writes the JSON.

    Args:
      args: config or all, topology, slices, find_batch, price_per_chip_hour, json.
      overrides: `--config.a.b=value` words, for every config.

    Raises:
      DoesNotFit: after everything was printed and written, if a step does not fit.
      ConfigError: for usage; with --all after the table, if a config was refused.
    """
    where = topology.find(args.topology, args.slices)
    price = args.price_per_chip_hour
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"--price-per-chip-hour {price}: a price is 0 or more")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f"--json {args.json}: there is no directory {Path(args.json).parent}")
    if args.all:
        _all(where, args, overrides)
        return
    found = _one(args.config, where, args, overrides)
    print(preflight_report.report(args.config, found))
    _write(args.json, found)
    for name, result in found["steps"].items():
        if not result["fits"]:
            needed, limit = result["hbm_peak_bytes"], result["hbm_limit_bytes"]
            hint = "" if args.find_batch else "; --find-batch looks for what would make it fit"
            raise DoesNotFit(
                f"the {name} step does not fit on {where.name}: {preflight_report.size(needed)}"
                f" of {preflight_report.size(limit)}{hint}"
            )


def _one(spec: str, where: Topology, args: Any, overrides: list[str]) -> dict[str, Any]:
    config = configfile.load(spec, overrides)
    found = {"config": spec} | preflight.preflight(config, where, args.price_per_chip_hour, _say)
    if args.find_batch:
        own = found["steps"]["train"]
        largest, tried = preflight.find_batch(config, where, own, _say)
        found |= {"largest_batch_per_chip": largest, "tried": tried}
    return found


def _all(where: Topology, args: Any, overrides: list[str]) -> None:
    """Every file in configs/ with its default argument; one that is refused stops no other."""
    files = sorted(glob.glob("configs/*.py"))
    if not files:
        raise ConfigError("--all: there are no configs/*.py here; run it in the checkout")
    rows: list[dict[str, Any]] = []
    failures: list[Exception] = []
    for spec in files:
        _say(spec)
        try:
            rows.append(_one(spec, where, args, overrides))
        except (PitError, jax.errors.JaxRuntimeError, NotImplementedError) as error:
            failures.append(error)  # the last two: the compiler's own
            rows.append({"config": spec, "error": " ".join(str(error).split())[:200]})
    print(preflight_report.table(rows))
    _write(args.json, {"schema": preflight.SCHEMA, "topology": where.name, "configs": rows})
    large = [
        row["config"]
        for row in rows
        if "steps" in row and not all(result["fits"] for result in row["steps"].values())
    ]
    if large:
        raise DoesNotFit(f"{len(large)} of {len(rows)} configs do not fit: {', '.join(large)}")
    if failures:
        raise ConfigError(f"{len(failures)} of {len(rows)} configs were refused")


def _write(path: str | None, found: dict[str, Any]) -> None:
    if not path:
        return
    try:
        Path(path).write_text(json.dumps(found, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"--json {path} cannot be written: {error.strerror}") from None


def _say(line: str) -> None:
    """Progress: compiling takes up to a minute a step."""
    print(line, file=sys.stderr, flush=True)
