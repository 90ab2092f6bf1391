"""The processes that this one was started beside, as the variables of their starter tell.

Only what speaks of this very step counts. A Slurm allocation tells every shell inside it of
its tasks (SLURM_NTASKS): the script of sbatch, the shell of salloc, whoever logs in to the
node; all these are one process. That there are others only srun says, by the variables of
its step: SLURM_STEP_NODELIST, where they run, SLURM_STEP_NUM_TASKS, how many they are, and
SLURM_PROCID, which of them this is. Open MPI says it by OMPI_COMM_WORLD_SIZE, which it sets
for a process alone, too; it is asked first, since its own helpers on other nodes are steps
of srun. JAX's three variables go before both. An empty variable is one that is not set.

JAX gives a process of Slurm or Open MPI one GPU, that of its place on the node. Here the
processes of a node share alike what they see: one takes all eight GPUs, two take four each,
eight one each. Where Slurm has dealt them out already (--gpus-per-task, --gpu-bind, or fewer
in sight than the step has on the node), each takes what it sees. JAX_LOCAL_DEVICE_IDS
decides otherwise.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from pit_jax import installation
from pit_jax.errors import ConfigError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_ADDRESS, _COUNT, _NUMBER = VARIABLES
_OPEN_MPI, _SLURM = "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NODELIST"


@dataclasses.dataclass(frozen=True)
class Peers:
    """A group of processes and this one's place in it.

    Attributes:
      count: of processes, this one included.
      number: of this one, from 0.
      address: HOST:PORT of process 0; "" where JAX finds it by itself.
      method: how JAX finds it; "" where it need not.
      gpus: those of this process, by their place among the visible ones; none: all of
        them. None where JAX_LOCAL_DEVICE_IDS says it.
    """

    count: int
    number: int
    address: str = ""
    method: str = ""
    gpus: tuple[int, ...] | None = ()

    def options(self) -> dict[str, Any]:
        """For `jax.distributed.initialize`."""
        found: dict[str, Any] = {"num_processes": self.count, "process_id": self.number}
        if self.address:
            found["coordinator_address"] = self.address
        if self.method:
            found["cluster_detection_method"] = self.method
        if self.gpus is not None:  # an empty list keeps JAX from choosing one
            found["local_device_ids"] = list(self.gpus)
        return found


def find(environment: Mapping[str, str], visible: int = 0) -> Peers | None:
    """Who was started beside this process; None if nobody was.

    Args:
      environment: of this process.
      visible: GPUs that it sees.

    Raises:
      ConfigError: naming the variable that is missing or makes no sense, or if the GPUs of
        this node do not divide over its processes.
    """
    given = [name for name in VARIABLES if environment.get(name)]
    address = environment.get(_ADDRESS, "")
    if address and not re.fullmatch(r".+:\d{1,5}", address):
        raise ConfigError(f"{_ADDRESS}={address}: write HOST:PORT of process 0")
    if given and given != [_ADDRESS]:
        _require(environment, VARIABLES, given[0])
        count, number = _place(environment, _COUNT, _NUMBER)
        return Peers(count, number, address, gpus=_gpus(environment, visible))
    if environment.get(_OPEN_MPI) and _number(environment, _OPEN_MPI) > 1:
        place = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
        _require(environment, place, _OPEN_MPI)
        count, number = _place(environment, _OPEN_MPI, place[0])
        method = "" if address else _open_mpi(environment)
        return Peers(count, number, address, method, _gpus(environment, visible))
    if environment.get(_SLURM):
        total = "SLURM_STEP_NUM_TASKS"
        total = total if environment.get(total) else "SLURM_NTASKS"  # of very old versions
        if environment.get(total) and _number(environment, total) > 1:
            # What JAX looks for before it believes that this is Slurm.
            known = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
            _require(environment, known, _SLURM)
            count, number = _place(environment, total, "SLURM_PROCID")
            method = "" if address else "slurm"
            return Peers(count, number, address, method, _gpus(environment, visible))
    return None


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The same environment for a child that is a run of its own, in no group."""
    left_out = {*VARIABLES, _OPEN_MPI, _SLURM}
    return {name: value for name, value in environment.items() if name not in left_out}


def _open_mpi(environment: Mapping[str, str]) -> str:
    if environment.get("OMPI_MCA_orte_hnp_uri"):
        return "ompi"
    if importlib.util.find_spec("mpi4py"):  # Open MPI 5 and newer name no such place
        return "mpi4py"
    raise ConfigError(
        f"{_OPEN_MPI}={environment[_OPEN_MPI]}, but nothing says where process 0 is: set"
        f" {_ADDRESS} to its HOST:PORT, or {installation.install('mpi4py')}, or use Open MPI 4"
    )


# This node's GPUs --------------------------------------------------------------------------


def _gpus(environment: Mapping[str, str], visible: int) -> tuple[int, ...] | None:
    """Which of the GPUs in sight are this process's; () for all of them."""
    if ids := environment.get("JAX_LOCAL_DEVICE_IDS"):
        if not re.fullmatch(r"\d+(,\d+)*", ids):
            raise ConfigError(f"JAX_LOCAL_DEVICE_IDS={ids}: write numbers, such as 0,1,2,3")
        return None
    mates, place = _on_node(environment)
    if mates == 1 or visible <= 1 or _dealt_out(environment, visible, mates):
        return ()
    if visible % mates:
        raise ConfigError(
            f"{mates} processes on this node cannot share its {visible} GPUs alike: start one a"
            f" node, or one a GPU (--ntasks-per-node={visible}), or say whose they are by"
            " JAX_LOCAL_DEVICE_IDS"
        )
    share = visible // mates
    return tuple(range(place * share, (place + 1) * share))


def _on_node(environment: Mapping[str, str]) -> tuple[int, int]:
    """How many processes of the group are on this node, and which of them this is."""
    if environment.get(_OPEN_MPI) and _number(environment, _OPEN_MPI) > 1:
        local = "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
        return _place(environment, *local) if all(map(environment.get, local)) else (1, 0)
    if not (environment.get(_SLURM) and environment.get("SLURM_LOCALID")):
        return 1, 0
    place = _number(environment, "SLURM_LOCALID")
    nodes = _tasks_of_nodes(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environment, "SLURM_NODEID") if environment.get("SLURM_NODEID") else 0
    if node < len(nodes):
        mates = nodes[node]
    else:
        total, over = (environment.get(f"SLURM_STEP_NUM_{x}", "") for x in ("TASKS", "NODES"))
        known = total.isdecimal() and over.isdecimal() and int(over) > 0
        mates = -(-int(total) // int(over)) if known else 1
    return max(mates, place + 1), place


def _tasks_of_nodes(text: str) -> list[int]:
    """ "2(x3),1" → [2, 2, 2, 1], as Slurm shortens it; [] of what is written otherwise."""
    tasks: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part)
        if not found:
            return []
        tasks += [int(found[1])] * int(found[2] or 1)
    return tasks


def _dealt_out(environment: Mapping[str, str], visible: int, mates: int) -> bool:
    """Whether each process of this node sees GPUs that are its own."""
    bound = environment.get("SLURM_GPU_BIND", "")
    if bound:
        return not bound.removeprefix("verbose,").startswith("none")
    if each := _last_number(environment.get("SLURM_GPUS_PER_TASK", "")):
        return visible != each * mates
    ids = [x for x in environment.get("SLURM_STEP_GPUS", "").split(",") if x]
    return visible < max(len(ids), _last_number(environment.get("SLURM_GPUS_ON_NODE", "")))


def _last_number(text: str) -> int:
    """ "4", or "a100:4"; 0 if there is none."""
    last = text.rpartition(":")[2]
    return int(last) if last.isdecimal() else 0


# Variables ----------------------------------------------------------------------------------


def _require(environment: Mapping[str, str], names: tuple[str, ...], by: str) -> None:
    if missing := [name for name in names if not environment.get(name)]:
        raise ConfigError(f"{by} is set, but not {', '.join(missing)}")


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not re.fullmatch(r"\d{1,9}", text):
        raise ConfigError(f"{name}={text[:40]} is not a number: it says which processes there are")
    return int(text)


def _place(environment: Mapping[str, str], total: str, mine: str) -> tuple[int, int]:
    count, number = _number(environment, total), _number(environment, mine)
    if number >= count:
        raise ConfigError(f"{mine}={number} is not below {total}={count}: they count from 0")
    return count, number
