"""Plays `pit-jax train` in milliseconds, for tests of what starts it.

It takes 40 steps of 5 ms (times $FAKE_SLOW), saves every 10, goes on where it saved, and obeys
SIGTERM. $FAKE is a JSON object: a directory's beginning → exit codes of its starts, one after
the other (-9: it kills itself at step 15; 0: it runs on). Every start, every step and every SIGUSR1
is a line of starts.txt in the sweep's directory.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS, EVERY, STEP_S = 40, 10, 0.005


def main(config: Path, workdir: Path) -> int:
    def note(*words) -> None:
        with open(workdir.parent / "starts.txt", "a") as file:
            file.write(" ".join(map(str, (workdir.name, *words))) + "\n")

    def status(**fields) -> None:
        temporary = workdir / ".status"
        temporary.write_text(json.dumps({"total": STEPS, **fields}))
        temporary.replace(workdir / "status.json")

    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGUSR1, lambda number, frame: note("stacks"))
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(config.read_text())
    saved = workdir / "saved"
    first = int(saved.read_text()) if saved.exists() else 0
    history = workdir.parent / "starts.txt"
    before = history.read_text().count(f"{workdir.name} starts") if history.exists() else 0
    note("starts", first, len(os.sched_getaffinity(0)))
    plans = json.loads(os.environ.get("FAKE", "{}"))
    codes = next((plan for name, plan in plans.items() if workdir.name.startswith(name)), [])
    code = codes[before] if before < len(codes) else 0
    status(state="running", exit_code=None, step=first)
    for step in range(first + 1, STEPS + 1):
        time.sleep(STEP_S * float(os.environ.get("FAKE_SLOW", "1")))
        note("step", step)
        row = {"step": step, "time": time.time(), "train/loss": 1 / step, "perf/left_s": 3.0}
        with open(workdir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        if step % EVERY == 0 or asked:
            saved.write_text(str(step))
            (workdir / "manifests").mkdir(exist_ok=True)
            (workdir / "manifests" / f"{step}.json").write_text("{}")
        if asked:
            status(state="preempted", exit_code=75, step=step)
            return 75
        if step == 15 and code:
            print(f"pit-jax: it was told to end with {code}", flush=True)
            if code < 0:
                os.kill(os.getpid(), -code)
            status(state="failed", exit_code=code, step=step)
            return code
    seed = json.loads(config.read_text())["train"]["seed"]
    lr = json.loads(config.read_text())["optim"]["lr"]
    result = {"eval/accuracy": 1 / (1 + abs(lr - 0.01)) - 0.01 * seed}
    status(state="done", exit_code=0, step=STEPS, result=result)
    return 0


if __name__ == "__main__":
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    sys.exit(main(Path(given["--config"]), Path(given["--workdir"])))
