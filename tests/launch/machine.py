"""A TPU VM made of stand-ins: the tools that a start-up script calls, in a directory on PATH.

The bucket is a directory; every call that matters is a line in `calls`.
"""

import os
import pathlib
import subprocess
import time

_GCLOUD = r"""
say "gcloud $*"
file() { printf '%s' "${1/#gs:\//$MACHINE/bucket}"; }
if [ "$1" != storage ]; then exit 0; fi
verb="$2"; shift 2
words=()
for word in "$@"; do
  case "$word" in --*) ;; *) words+=("$(file "$word")") ;; esac
done
if [ -e "$MACHINE/offline" ]; then echo 'ERROR: no network' >&2; exit 1; fi
if [ -e "$MACHINE/slow-ship" ] && [ -e "$MACHINE/disk/worker.pid" ]; then
  case "${words[0]}" in # arrives after all that the worker sends
    */shipped.log) until grep -qs 'the worker ended' "${words[1]}"; do /bin/sleep 0.01; done ;;
  esac
fi
case "$verb" in
  cp) mkdir -p "$(dirname "${words[1]}")" && cp "${words[0]}" "${words[1]}.$$" &&
      mv "${words[1]}.$$" "${words[1]}" ;;
  rsync) mkdir -p "${words[1]}" && cp -r "${words[0]}/." "${words[1]}" ;;
  cat) cat "${words[0]}" ;;
  du) if [ -e "$MACHINE/size" ]; then echo "$(cat "$MACHINE/size")  gs://somewhere"
      elif [ -d "${words[0]}" ]; then echo "$(du -sb "${words[0]}" | cut -f 1)  gs://somewhere"
      else echo 'ERROR: (gcloud.storage.du) One or more URLs matched no objects.' >&2; exit 1
      fi ;;
esac
"""
_PYTHON = r"""
case "$*" in
  '-c '*) [ -e "$MACHINE/new-python" ] ;;
  '-m pip --version') [ -e "$MACHINE/pip" ] ;;
  '-m pip install'*)
    say "python3 $*"
    while [ "$1" != --target ]; do shift; done
    mkdir -p "$2/bin" && cp "$MACHINE/bin/uv-itself" "$2/bin/uv" ;;
esac
"""
_UV = r"""
say "uv $*"
if [ -e "$MACHINE/no-packages" ]; then echo 'error: Failed to fetch' >&2; exit 1; fi
if [ -e "$MACHINE/no-solution" ] && [ "$1" = pip ]; then
  echo '  × No solution found when resolving dependencies:' >&2; exit 1
fi
if [ "$1" = venv ]; then
  for place in "$@"; do :; done
  mkdir -p "$place/bin" && cp "$MACHINE/bin/venv-python" "$place/bin/python"
fi
"""
_WORKER = r"""
say "worker $*"
say "TFDS_DATA_DIR=${TFDS_DATA_DIR:-}"
say "in $PWD"
echo 'the worker speaks'
if [ -e "$MACHINE/worker-fails" ]; then echo 'ImportError: libtpu'; exit 1; fi
if [ -e "$MACHINE/worker-dies" ]; then kill -KILL $$; fi
if [ -e "$MACHINE/worker-stays" ]; then
  trap 'say "worker had SIGTERM"; exit 75' TERM
  say "worker waits"
  for _ in {1..600}; do /bin/sleep 0.02; done
fi
"""
_CURL = r"""
case "$*" in *apt-key*) echo key; exit ;; esac
say "curl $*"
if [ -e "$MACHINE/deaf" ]; then # to as many questions as it has lines
  sed -i 1d "$MACHINE/deaf"
  if [ ! -s "$MACHINE/deaf" ]; then rm "$MACHINE/deaf"; fi
  printf 000
  exit 7
fi
for url in "$@"; do :; done
while [ "$1" != --output ]; do shift; done
case "$url" in
  *agent-worker-number) found=number ;;
  *tpu-env) found=tpu-env ;;
esac
if [ -e "$MACHINE/$found" ]; then cp "$MACHINE/$found" "$2"; printf 200
else echo 'not found' >"$2"; printf 404; fi
"""
_STUBS = {
    "gcloud": _GCLOUD,
    "python3": _PYTHON,
    "uv-itself": _UV,
    "venv-python": _WORKER,
    "curl": _CURL,
    **dict.fromkeys(("python3.13", "python3.12", "python3.11"), "exit 1"),
    "df": 'printf "Avail\\n%s\\n" "$(cat "$MACHINE/free")"',
    "hostname": "echo t1v-n-0a1b2c-w-5",
    "lsblk": 'cat "$MACHINE/disks"',
    "mount": 'say "mount $*"; touch "$MACHINE/mounted"',
    "mountpoint": '[ -e "$MACHINE/mounted" ]',
    "lsb_release": "echo jammy",
    "apt-get": 'say "apt-get $*"; case "$*" in *gcsfuse) cp "$MACHINE/bin/fuse-itself" '
    '"$MACHINE/bin/gcsfuse" ;; *python3-pip) touch "$MACHINE/pip" ;; esac',
    "fuse-itself": 'say "gcsfuse $*"; for place in "$@"; do :; done; '
    'touch "$MACHINE/mounted" "$place/cifar100"',
    "systemd-run": 'say "systemd-run $*"; echo active >"$MACHINE/unit"',
    "systemctl": '[ "$1" != is-active ] || cat "$MACHINE/unit" 2>/dev/null || '
    "{ echo inactive; exit 3; }",
    "sleep": 'say "sleep $*"; exec /bin/sleep 0.01',
}
_HEAD = '#!/bin/bash\nsay() { printf "%s\\n" "$*" >>"$MACHINE/calls"; }\n'


class Machine:
    """One VM: `boot` runs a start-up script on it. Files in `path` say how it behaves."""

    def __init__(self, path: pathlib.Path, number: int = 0):
        self.path = path
        for folder in ("bin", "bucket", "disk", "system"):
            (path / folder).mkdir()
        for name, text in _STUBS.items():
            (path / "bin" / name).write_text(_HEAD + text + "\n")
            (path / "bin" / name).chmod(0o755)
        self.set("number", str(number))
        self.set("tpu-env", "ACCELERATOR_TYPE: 'v5litepod-16'\nZONE: 'us-west4-a'\n")
        self.set("free", str(90 * 10**9))
        self.set("disks", "/dev/sda  disk\n")
        self.set("pip")
        self.set("calls")

    def set(self, name: str, text: str = "") -> None:
        (self.path / name).write_text(text)

    def unset(self, name: str) -> None:
        (self.path / name).unlink()

    def bucket(self, place: str) -> pathlib.Path:
        """The file that stands for gs://<place>."""
        return self.path / "bucket" / place

    def boot(self, script: str, **environment: str) -> int:
        """The exit code; what is run in the background may still run."""
        file = self.path / "script.sh"
        file.write_text(script)
        given = {
            "PATH": f"{self.path}/bin:/usr/bin:/bin",
            "MACHINE": str(self.path),
            "PIT_JAX_ROOT": str(self.path / "disk"),
            "PIT_JAX_SYSTEM": str(self.path / "system"),
            "PIT_JAX_PAUSE": "1",
            **environment,
        }
        done = subprocess.run(["bash", str(file)], env=given, timeout=60, cwd=self.path)
        return done.returncode

    @property
    def calls(self) -> list[str]:
        return (self.path / "calls").read_text().splitlines()

    def called(self, start: str) -> list[str]:
        """Calls that begin so."""
        return [line for line in self.calls if line.startswith(start)]

    def wait(self, start: str) -> str:
        """The first such call, once there is one."""
        deadline = time.monotonic() + 20
        while not self.called(start):
            if time.monotonic() > deadline:
                raise AssertionError(f"no {start!r} in {self.calls[-20:]}; {self.log}")
            time.sleep(0.01)
        return self.called(start)[0]

    def start_again(self) -> int:
        """Runs what systemd was given to run, as it does again; the exit code that it sees."""
        (call,) = self.called("systemd-run")
        words = call[call.index("bash ") :].split()
        environment = {"PATH": f"{self.path}/bin:/usr/bin:/bin", "MACHINE": str(self.path)}
        return subprocess.run(words, env=environment, timeout=60, cwd=self.path).returncode

    def idle(self, limit_s: float = 20.0) -> None:
        """Waits until what the script started in the background has ended."""
        worker = (self.path / "disk" / "worker.pid").read_text().strip()
        deadline = time.monotonic() + limit_s
        while os.path.exists(f"/proc/{worker}"):
            if time.monotonic() > deadline:
                raise AssertionError(f"the worker still runs; {self.log}")
            time.sleep(0.01)

    @property
    def log(self) -> str:
        return (self.path / "disk" / "startup.log").read_text()

    def terminate(self) -> None:
        """SIGTERM to what the script started in the background, as at a shutdown."""
        os.kill(int((self.path / "disk" / "worker.pid").read_text()), 15)
