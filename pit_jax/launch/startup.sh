#!/bin/bash
# What a TPU VM runs as root at every boot: brings Python, the package and the data, and
# starts the worker. What an earlier boot did is not done again. What goes wrong is in
# <workdir>/logs/<worker>-startup.log. Where it goes wrong on the first worker the slice is
# deleted, since it costs money; what would go wrong again (exit code 2) ends the run, whichever
# worker finds it.

# SETTINGS

set -Eeuo pipefail
umask 022
export HOME="${HOME:-/root}" DEBIAN_FRONTEND=noninteractive CLOUDSDK_CORE_DISABLE_PROMPTS=1
ROOT="${PIT_JAX_ROOT:-/opt/pit_jax}"
SYSTEM="${PIT_JAX_SYSTEM:-}" # where the system's own files are, / but in a test
LOG="$ROOT/startup.log"
DATA_DIR="$ROOT/data"
REASON=""
WORKER=""
STARTED="" # from then on the log is the worker's to ship: an older one would replace it
if [ -n "$WHEEL" ]; then PACKAGE="$PACKAGE @ file://$ROOT/launch/$WHEEL"; fi
mkdir -p "$ROOT/launch"
exec >>"$LOG" 2>&1 </dev/null
echo "$(date -u +%FT%TZ) start-up of launch $LAUNCH ($NAME)"

# Tools ---------------------------------------------------------------------------------

gs() { # cp, rsync, du, cat
  if command -v gcloud >/dev/null; then gcloud storage "$@"; else old_gs "$@"; fi
}

old_gs() { # the same with gsutil, which older images have instead
  case "$1" in
    rsync) gsutil -m -q rsync -r "$3" "$4" ;;
    du) gsutil du -s "$3" ;;
    *) gsutil -q "$@" ;;
  esac
}

ship() { # the log, as far as it is; never a reason to fail
  tail -c 1000000 "$LOG" >"$ROOT/shipped.log" || return 0
  gs cp "$ROOT/shipped.log" "$WORKDIR/logs/${WORKER:-unknown}-startup.log" >/dev/null 2>&1 || true
}

persist() { # a command that needs the network, for ten minutes and more
  local pause="${PIT_JAX_PAUSE:-5}" attempt
  for attempt in 1 2 3 4 5 6 7; do
    if "$@"; then return 0; fi
    echo "attempt $attempt of 8 failed, again in $pause s: $*"
    ship
    sleep "$pause"
    pause=$((pause * 2))
  done
  "$@" || { REASON="this did not work: $*" && return 1; }
}

fail() { # CODE LINE
  REASON="$2"
  exit "$1"
}

attribute() { # of the instance's metadata; nothing if it has none of that name
  local host="${GCE_METADATA_HOST:-metadata.google.internal}" code=""
  # A machine that cannot ask has no name and no credentials, so it can only go on asking: who
  # took itself for the first worker would delete a slice that runs.
  while true; do
    : >"$ROOT/attribute"
    code="$(curl --silent --max-time 10 --header 'Metadata-Flavor: Google' \
      --output "$ROOT/attribute" --write-out '%{http_code}' \
      "http://$host/computeMetadata/v1/instance/attributes/$1")" || code=""
    case "$code" in
      200) cat "$ROOT/attribute" && return ;;
      404) return ;;
    esac
    echo "the metadata server does not say $1 (${code:-no answer}): it is asked again" >&2
    sleep "${PIT_JAX_PAUSE:-30}"
  done
}

let_go() { # of the slice; older images know the command as an alpha one only
  local words=(compute tpus queued-resources delete "$NAME" --project "$PROJECT" --zone "$ZONE")
  gcloud "${words[@]}" --force --async --quiet || gcloud alpha "${words[@]}" --force --async --quiet
}

ended() { # at every exit
  local code="$1" final=false
  trap - EXIT ERR
  set +e
  if [ "$code" != 0 ]; then
    REASON="$(printf '%s' "$REASON" | tr -d '\000-\037\042\134' | cut -c 1-300)"
    echo "start-up failed: $REASON"
    case "$WORKER $code" in
      slice-0-worker-0\ *)
        if [ "$code" = 2 ]; then final=true; fi # else a watcher may create it again
        printf '{"state": "failed", "exit_code": %s, "final": %s, "launch": "%s", "reason": "%s", "time": "%s"}\n' \
          "$code" "$final" "$LAUNCH" "start-up: $REASON" "$(date -u +%FT%T+00:00)" >"$ROOT/status.json"
        persist gs cp "$ROOT/status.json" "$WORKDIR/status.json"
        echo "deleting the queued resource $NAME"
        ship
        persist let_go
        ;;
      slice-*\ 2) # the first worker would wait for this one: it ends the run with it
        printf '{"launch": "%s", "exit_code": 2, "reason": "%s"}\n' \
          "$LAUNCH" "start-up: $REASON" >"$ROOT/verdict.json"
        persist gs cp "$ROOT/verdict.json" "$WORKDIR/verdicts/$WORKER.json"
        ;;
    esac
  fi
  if [ -z "$STARTED" ]; then ship; fi
  exit "$code"
}
trap 'ended $?' EXIT
trap 'REASON="${REASON:-$BASH_COMMAND did not work}"' ERR

# Who we are ----------------------------------------------------------------------------

number="$(attribute agent-worker-number)"
if [ -z "$number" ]; then number="$(hostname | sed -n 's/.*-w-\([0-9]\{1,\}\)$/\1/p')"; fi
if [ -z "$number" ]; then fail 2 "this machine does not say which worker it is"; fi
slice="$(attribute tpu-env | sed -n "s/^MEGASCALE_SLICE_ID: *'\{0,1\}\([0-9]\{1,\}\).*/\1/p")"
WORKER="slice-${slice:-0}-worker-$number"
echo "this is $WORKER"

finished="$(gs cat "$WORKDIR/status.json" 2>/dev/null | tr -d ' \n')" || finished=""
case "$finished" in
  *'"final":true'*) case "$finished" in
    *"\"launch\":\"$LAUNCH\""*)
      echo "this launch has ended before"
      if [ "$WORKER" = slice-0-worker-0 ]; then persist let_go; fi
      exit 0
      ;;
  esac ;;
esac

running() {
  if [ -d "$SYSTEM/run/systemd/system" ]; then
    case "$(systemctl is-active pit-jax)" in active | activating) ;; *) return 1 ;; esac
  else
    [ -f "$ROOT/worker.pid" ] && kill -0 "$(cat "$ROOT/worker.pid")" 2>/dev/null
  fi
}
if running; then
  echo "the worker runs already"
  STARTED=yes
  exit 0
fi

# Python and the package ----------------------------------------------------------------

find_python() { # what the image has, if it is new enough and known to work
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo 3.12 # uv brings one
}

install_pip() {
  python3 -m pip --version || { apt-get update -qq && apt-get install -y -qq python3-pip; }
}

make_environment() {
  rm -rf "$ROOT/venv"
  UV_PYTHON_INSTALL_DIR="$ROOT/python" "$ROOT/uv/bin/uv" venv --quiet --python "$PYTHON" "$ROOT/venv"
}

install_package() { # what has no solution has none in a minute either
  local code=0
  "$ROOT/uv/bin/uv" pip install --quiet --python "$ROOT/venv/bin/python" \
    --constraint "$ROOT/launch/constraints.txt" "$1" 2>"$ROOT/said" || code=$?
  cat "$ROOT/said"
  if grep -q 'No solution found' "$ROOT/said"; then
    fail 2 "$1 cannot be installed: its requirements have no solution, see the end of the log"
  fi
  return "$code"
}

STAMP="$LAUNCH $PACKAGE"
if [ "$(cat "$ROOT/installed" 2>/dev/null)" != "$STAMP" ]; then
  for file in "${FILES[@]}"; do
    persist gs cp "$WORKDIR/launch/$file" "$ROOT/launch/$file"
  done
  if [ -n "$STUDY" ]; then
    persist gs rsync --recursive "$WORKDIR/launch/$STUDY" "$ROOT/launch/$STUDY"
  fi
  if [ ! -x "$ROOT/uv/bin/uv" ]; then
    persist install_pip
    persist python3 -m pip install --quiet --target "$ROOT/uv" uv
  fi
  PYTHON="$(find_python)"
  echo "installing $PACKAGE on Python $PYTHON"
  persist make_environment
  persist install_package "$PACKAGE"
  echo "$STAMP" >"$ROOT/installed"
  ship
fi

# Data ----------------------------------------------------------------------------------

gigabytes() { awk -v bytes="$1" 'BEGIN {printf "%.1f GB", bytes / 1e9}'; }

nothing_there() {
  fail 2 "there is nothing at $DATA, or the workers may not read it"
}

measure() { # in bytes, into $ROOT/size; what is not there will not be in a minute either
  local code=0
  gs du --summarize "$1" >"$ROOT/size" 2>"$ROOT/said" || code=$?
  cat "$ROOT/said"
  if grep -Eq 'matched no objects|not found: 404|BucketNotFound' "$ROOT/said"; then nothing_there; fi
  return "$code"
}

stage() {
  local size there free
  if [ "$(cat "$ROOT/staged" 2>/dev/null)" = "$DATA" ]; then return; fi
  mkdir -p "$DATA_DIR"
  persist measure "$DATA"
  size="$(awk 'END {print $1}' "$ROOT/size")"
  case "$size" in '' | *[!0-9]* | 0) nothing_there ;; esac
  there="$(du --summarize --bytes "$DATA_DIR" | cut -f 1)" # of a copy that was cut off
  free="$(df --output=avail --block-size=1 "$DATA_DIR" | tail -n 1 | tr -d ' ')"
  if [ $((free + there)) -lt $((size + size / 20)) ]; then
    fail 2 "$DATA takes $(gigabytes "$size"), a twentieth more to be safe, and the worker's disk has $(gigabytes $((free + there))): use --data-mode mount or --data-disk"
  fi
  echo "copying $(gigabytes "$size") from $DATA"
  persist gs rsync --recursive "$DATA" "$DATA_DIR"
  echo "$DATA" >"$ROOT/staged"
}

install_gcsfuse() {
  local release keys="$SYSTEM/usr/share/keyrings/cloud.google.asc"
  release="gcsfuse-$(lsb_release --codename --short)"
  mkdir -p "$SYSTEM/etc/apt/sources.list.d" "$SYSTEM/usr/share/keyrings"
  curl --silent --fail --max-time 60 https://packages.cloud.google.com/apt/doc/apt-key.gpg >"$keys" &&
    echo "deb [signed-by=$keys] https://packages.cloud.google.com/apt $release main" \
      >"$SYSTEM/etc/apt/sources.list.d/gcsfuse.list" &&
    apt-get update -qq && apt-get install -y -qq gcsfuse
}

mount_bucket() {
  local rest="${DATA#gs://}" bucket directory free options
  if mountpoint -q "$DATA_DIR"; then return; fi
  command -v gcsfuse >/dev/null || persist install_gcsfuse
  bucket="${rest%%/*}"
  directory="${rest#"$bucket"}"
  directory="${directory#/}"
  mkdir -p "$DATA_DIR" "$ROOT/gcsfuse"
  free="$(df --output=avail --block-size=1M "$ROOT" | tail -n 1 | tr -d ' ')"
  options=(--implicit-dirs -o ro --cache-dir "$ROOT/gcsfuse" --file-cache-max-size-mb $((free / 2)))
  if [ -n "${directory%/}" ]; then options+=(--only-dir "${directory%/}"); fi
  persist gcsfuse "${options[@]}" "$bucket" "$DATA_DIR"
  if [ -z "$(ls -A "$DATA_DIR")" ]; then nothing_there; fi
}

mount_disk() { # the one disk that holds a file system and no partitions: not the boot disk
  local found device kind how=ro
  if mountpoint -q "$DATA_DIR"; then return; fi
  found="$(lsblk --nodeps --noheadings --paths --output NAME,FSTYPE,MOUNTPOINT,TYPE |
    awk '$NF == "disk" && NF == 3 {print $1, $2}')"
  if [ "$(printf '%s\n' "$found" | grep -c .)" != 1 ]; then
    fail 2 "of the disks here not exactly one holds a file system: $(printf '%s' "$found" | tr '\n' ';')"
  fi
  read -r device kind <<<"$found"
  case "$kind" in # what would be replayed cannot be on a disk that is read-only
    ext*) how=ro,noload ;;
    xfs) how=ro,norecovery ;;
  esac
  mkdir -p "$DATA_DIR"
  mount -o "$how" "$device" "$DATA_DIR"
}

case "$DATA_MODE" in
  stage) stage ;;
  mount) mount_bucket ;;
  disk) mount_disk ;;
esac

# The worker ----------------------------------------------------------------------------

# Passes SIGTERM on, which is how a preempted machine ends, and ships the log: what the worker
# says outside of its run is nowhere else.
cat >"$ROOT/run.sh" <<'END'
#!/bin/bash
log="$1" place="$2"
shift 2
"$@" >>"$log" 2>&1 </dev/null &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT HUP
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
if [ "$code" != 0 ]; then echo "the worker ended with exit code $code" >>"$log"; fi
tail -c 1000000 "$log" >"$log.tail"
if command -v gcloud >/dev/null; then
  gcloud storage cp "$log.tail" "$place" >/dev/null 2>&1
else
  gsutil -q cp "$log.tail" "$place" >/dev/null 2>&1
fi
exit "$code"
END
run=(bash "$ROOT/run.sh" "$LOG" "$WORKDIR/logs/$WORKER-startup.log")
run+=("$ROOT/venv/bin/python" -m pit_jax.launch.worker "${ARGUMENTS[@]}")
settings=("HOME=$HOME" "PATH=$ROOT/venv/bin:$PATH" PYTHONUNBUFFERED=1)
if [ -n "$DATA_MODE" ]; then settings+=("TFDS_DATA_DIR=$DATA_DIR"); fi
cd "$ROOT/launch"
echo "starting the worker"
ship
if [ -d "$SYSTEM/run/systemd/system" ]; then
  systemctl reset-failed pit-jax 2>/dev/null || true
  # Its own unit, so that it outlives this script; SIGTERM to the first process alone, which
  # passes it on; ends before the network does. A trainer that is killed for memory is its
  # supervisor's to start again. A worker that was killed, or could not begin, is started again,
  # some twenty times a day; one that has settled ends with 0, and what systemd stops stays so.
  systemd-run --quiet --collect --unit=pit-jax --property=KillMode=mixed \
    --property=OOMPolicy=continue --property=Restart=on-failure --property=RestartSec=30 \
    --property=StartLimitIntervalSec=86400 --property=StartLimitBurst=20 \
    --property=TimeoutStopSec=600 --property=After=network-online.target \
    --property=LimitNOFILE=1048576 --property=LimitMEMLOCK=infinity \
    --property="WorkingDirectory=$ROOT/launch" "${settings[@]/#/--setenv=}" "${run[@]}"
else
  env "${settings[@]}" nohup setsid "${run[@]}" >/dev/null 2>&1 &
  echo "$!" >"$ROOT/worker.pid"
fi
STARTED=yes
