"""A measuring process and the one that asks it: one JSON object a line, each way.

Every side of a comparison runs in a process of its own, so that its memory is its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pit_jax.errors import ConfigError
from pit_jax.parallel import processes

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Worker:
    """A process that runs a module of this package and answers; use it in a `with`.

    Every side gets the memory pages that the trainer gives itself.
    """

    def __init__(self, module: str):
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path} | processes.huge_pages(),
        )

    def ask(self, what: str, **arguments: Any) -> Any:
        """Calls the worker's function `what` and returns what it returns.

        Raises:
          ConfigError: what the worker refuses.
          RuntimeError: if it died; its traceback is on stderr.
        """
        try:
            self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: the empty answer says so
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "refused" in answer:
            raise ConfigError(answer["refused"])
        return answer["value"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve(functions: Mapping[str, Callable]) -> None:
    """The worker's side: answers until there are no more questions."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = {"value": functions[arguments.pop("what")](**arguments)}
        except ConfigError as error:
            answer = {"refused": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def resident_peak() -> int:
    """The largest resident set of this process so far, bytes (Linux; elsewhere rusage)."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
