"""A stand-in for a trainer that does what it is told, in order, and takes milliseconds.

    python tests/launch/fake_trainer.py RUN_DIRECTORY WORD...

print=TEXT and error=TEXT (on stderr; _ for a space), beat=STEP, save=STEP (its manifest),
sleep=SECONDS, file=NAME (makes it), stacks (as trainers print them), grandchild=SECONDS (prints its
number), session=SECONDS (the same in a session of its own), environment=NAME and cores (prints
them), exit=CODE, kill=SIGNAL (itself), and what it does at SIGTERM and Ctrl-C from there on: deaf
(prints and goes on), told=WORD,WORD (then does those).
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

from pit_jax import beat

path = pathlib.Path(sys.argv[1])
beats = beat.Beat()


def do(word: str) -> None:
    what, _, value = word.partition("=")
    match what:
        case "print":
            print(value.replace("_", " "), flush=True)
        case "error":
            print(value.replace("_", " "), file=sys.stderr, flush=True)
        case "beat":
            beats(int(value))
        case "save":
            (path / "manifests").mkdir(parents=True, exist_ok=True)
            (path / "manifests" / f"{value}.json").write_text("{}")
        case "sleep":
            time.sleep(float(value))
        case "file":
            (path / value).write_text("")
        case "stacks":
            beat.print_stacks_when_asked()
        case "grandchild" | "session":
            words = [sys.executable, "-c", f"import time; time.sleep({value})"]
            alone = what == "session"
            print(subprocess.Popen(words, start_new_session=alone).pid, flush=True)
        case "environment":
            print(f"{value}={os.environ.get(value)}", flush=True)
        case "cores":
            print(sorted(os.sched_getaffinity(0)), flush=True)
        case "exit":
            os._exit(int(value))
        case "kill":
            os.kill(os.getpid(), getattr(signal, value))
        case "deaf":
            on_signal(lambda name: print(f"{name}? no", flush=True))
        case "told":
            on_signal(lambda name: [do(w) for w in value.split(",")])
        case _:
            raise ValueError(word)


def on_signal(action) -> None:
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), lambda number, frame, n=name: action(n))


for word in sys.argv[2:]:
    do(word)
