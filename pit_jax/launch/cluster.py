"""The client of a Kubernetes cluster's JobSets: create, look, delete.

Credentials are those of the kubeconfig, through the official client, and of nothing else.
"""

import contextlib
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pit_jax import installation, waiting
from pit_jax.errors import ConfigError, PitError
from pit_jax.launch import jobset

GONE_S = 60.0  # until an earlier JobSet of the name has been deleted
CALL_S = 30.0  # for one call to be answered
ENDED = ("COMPLETED", "FAILED")


class Unreachable(PitError):
    """The cluster did not answer; the same call may succeed later (exit code 5)."""

    exit_code = 5


class Cluster:
    """The JobSets of one namespace.

    Raises:
      ConfigError: if the kubeconfig has no such context, or there is none.
    """

    def __init__(self, context: str | None, namespace: str):
        try:
            from kubernetes import client, config
        except ImportError:
            raise missing() from None
        settings = client.Configuration()
        settings.retries = False  # the client's own tries would print on our user's terminal
        try:
            place = os.environ.get("KUBECONFIG") or config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION
            _, active = config.list_kube_config_contexts(place)
            self.context = context or active["name"]
            with _heard() as said:
                config.load_kube_config(place, self.context, settings, persist_config=False)
        except Exception as error:  # whatever somebody's YAML may lead to
            named = f"--context {ascii(context)[:60]}" if context else "no context"
            raise ConfigError(
                f"{named}: your kubeconfig names no cluster to use"
                f" ({' '.join(str(error).split())[:200]}):"
                " gcloud container clusters get-credentials CLUSTER"
            ) from None
        if said:  # goes on without credentials, which the cluster would call forbidden
            raise ConfigError(
                f"{self.context}: your kubeconfig's program gives no credentials"
                f" ({' '.join(said[0].split())[:200]}): gcloud auth login, and"
                " gcloud components install gke-gcloud-auth-plugin"
            )
        self.namespace = namespace
        self._api = client.CustomObjectsApi(client.ApiClient(settings))

    def get(self, name: str) -> dict[str, Any]:
        """The JobSet of a name; {} if there is none."""
        try:
            with self._told(name):
                found = self._call(self._api.get_namespaced_custom_object, name)
        except _Missing:
            return {}
        if not isinstance(found, dict) or "metadata" not in found:
            raise Unreachable(
                f"{self.context}: the answer is no JobSet: something else answers for the cluster"
            )
        return found

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Raises: ConfigError: in one line, for what the cluster refuses."""
        with self._told(manifest["metadata"]["name"]):
            # Strict: a JobSet too old for a field would drop it, and restart what is final.
            call = self._api.create_namespaced_custom_object
            self._call(call, manifest, field_validation="Strict")

    def delete(self, found: Mapping[str, Any]) -> bool:
        """Deletes that very JobSet, its pods first; whether it was there."""
        name, uid = found["metadata"]["name"], found["metadata"].get("uid")
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            with self._told(name):
                self._call(self._api.delete_namespaced_custom_object, name, body=body)
        except _Missing:
            return False
        return True

    def check_free(self, name: str, workdir: str) -> dict[str, Any]:
        """What has the name and may go, see `make_room`; {} if nothing has. Deletes nothing.

        Raises:
          ConfigError: if a JobSet has the name that goes on, or is of another work directory.
        """
        found = self.get(name)
        if not found or state_of(found) == "DELETING":
            return found
        if state_of(found) not in ENDED:
            raise ConfigError(
                f"--name {name}: there is a JobSet of this name in {self.namespace}: take another"
                f" name, or pit-jax launch stop {name}"
            )
        if (of := workdir_of(found)) != workdir.rstrip("/"):
            whose = f", of {ascii(of)[:120]}," if of else ""
            where = f"--context {shlex.quote(self.context)} --namespace {self.namespace}"
            raise ConfigError(
                f"--name {name}: a JobSet of this name{whose} has ended in {self.namespace}, and"
                " still has its logs: take another name, or kubectl delete jobset"
                f" {name} {where}"
            )
        return found

    def make_room(self, before: Mapping[str, Any]) -> None:
        """Deletes what `check_free` found, and waits until it is gone.

        Raises:
          PitError: if the cluster refuses that, or it takes too long.
        """
        if not before:
            return
        self.delete(before)
        name = before["metadata"]["name"]
        until = time.monotonic() + GONE_S
        while self.get(name):
            if time.monotonic() > until:
                raise Unreachable(f"{name}: the JobSet before is still being deleted: try again")
            time.sleep(0.5)

    def _call(self, call: Any, *words: Any, **options: Any) -> Any:
        place = (jobset.GROUP, jobset.VERSION, self.namespace, jobset.PLURAL)
        return call(*place, *words, **options, _request_timeout=(10.0, CALL_S))

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What went wrong, in one line."""
        import urllib3
        from kubernetes import client

        try:
            with waiting.announced(f"the cluster {self.context}"):
                yield
        except client.ApiException as error:
            raise self._error(name, error.status or 0, error.body or error.reason or "") from None
        except ValueError:  # a line break in a token, which its message would show
            raise ConfigError(
                f"{self.context}: the token in your kubeconfig is not valid"
            ) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = type(error).__name__
            raise Unreachable(
                f"{self.context}: the cluster does not answer ({reason}): is it there, and are you"
                " in its network?"
            ) from None

    def _error(self, name: str, code: int, body: str) -> PitError:
        try:
            told = json.loads(body)
        except ValueError:
            told = None
        told = told if isinstance(told, dict) else {}
        said = " ".join(str(told.get("message") or body or f"HTTP {code}").split())[:400]
        if code == 404 and not told:
            return ConfigError(
                f"{self.context} has no JobSet controller: see jobset.sigs.k8s.io/docs/installation"
            )
        if code == 404 and (told.get("details") or {}).get("kind") == "namespaces":
            return ConfigError(f"--namespace {self.namespace}: there is none in {self.context}")
        if code == 404:
            return _Missing(f"{name}: there is no such JobSet in {self.namespace}")
        if code == 401:
            return ConfigError(
                f"{self.context} does not know you: gcloud auth login, and"
                " gcloud components install gke-gcloud-auth-plugin"
            )
        if code == 403:
            return ConfigError(f"{self.context} forbids it: {said}")
        if code == 409:
            return ConfigError(
                f"--name {name}: there is or was another JobSet of this name in {self.namespace}"
                f" ({said})"
            )
        if code == 400 and "unknown field" in said:
            return ConfigError(f"{self.context} has a JobSet before 0.10, take a later one: {said}")
        if code >= 500 or code in (0, 408, 429):
            return Unreachable(f"{self.context} is in trouble: {said}")
        return ConfigError(f"{self.context} refuses it: {said}")


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What the client would print of a program that gives no credentials."""
    said: list[str] = []

    def kept(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    logging.root.addFilter(kept)
    try:
        yield said
    finally:
        logging.root.removeFilter(kept)


class _Missing(ConfigError):
    """There is no such JobSet."""


def missing() -> ConfigError:
    return ConfigError(f"Kubernetes' client is missing here: {installation.extra('launch')}")


def launch_of(found: Mapping[str, Any]) -> str | None:
    """The id of the launch that a JobSet is of; None of what is not ours."""
    return (found.get("metadata", {}).get("labels") or {}).get(jobset.LABEL)


def workdir_of(found: Mapping[str, Any]) -> str | None:
    """The work directory that a JobSet was launched for; None if it does not say."""
    return (found.get("metadata", {}).get("annotations") or {}).get(jobset.WORKDIR)


def state_of(found: Mapping[str, Any]) -> str:
    status = found.get("status") or {}
    ended = [
        one.get("type", "").upper()
        for one in status.get("conditions") or []
        if one.get("status") == "True"
    ]
    if found["metadata"].get("deletionTimestamp"):
        return "DELETING"
    for name in ENDED:
        if name in ended:
            return name
    if found.get("spec", {}).get("suspend"):  # Kueue's, until there is room
        return "SUSPENDED"
    jobs = status.get("replicatedJobsStatus") or []
    wanted = sum(one.get("replicas", 1) for one in found["spec"].get("replicatedJobs") or [])
    ready = sum((one.get("ready") or 0) + (one.get("succeeded") or 0) for one in jobs)
    return "ACTIVE" if wanted and ready >= wanted else "WAITING"
