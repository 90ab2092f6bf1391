"""Which processes belong together, by the variables that Slurm, Open MPI and people set."""

import glob

import jax
import pytest

from pit_jax import installation
from pit_jax.errors import ConfigError
from pit_jax.parallel import peers, processes

# What every shell of an allocation sees; srun adds the rest for its tasks.
ALLOCATION = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "1",
    "SLURM_JOB_NODELIST": "node1",
    "SLURM_GPUS_ON_NODE": "8",
}
BATCH = ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


def srun(tasks: int, number: int, nodes: int = 1, **more: str) -> dict[str, str]:
    """The variables of one task of a step, spread over the nodes alike."""
    each = tasks // nodes
    return (
        ALLOCATION
        | {
            "SLURM_NTASKS": str(tasks),
            "SLURM_STEP_NODELIST": f"node[1-{nodes}]",
            "SLURM_STEP_NUM_TASKS": str(tasks),
            "SLURM_STEP_NUM_NODES": str(nodes),
            "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})" if nodes > 1 else str(each),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number % each),
            "SLURM_NODEID": str(number // each),
        }
        | more
    )


def mpirun(tasks: int, number: int, **more: str) -> dict[str, str]:
    return {
        "OMPI_COMM_WORLD_SIZE": str(tasks),
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(tasks),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    } | more


OURS = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
# What salloc's shell may be: a step of one task, which keeps the allocation's number.
INTERACTIVE = srun(1, 0) | {"SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        ALLOCATION,
        BATCH,
        INTERACTIVE,
        srun(1, 0),
        ALLOCATION | {"SLURM_NTASKS": ""},
        ALLOCATION | {"SLURM_NTASKS": "8(x2)"},
        dict.fromkeys(srun(8, 0), ""),
        mpirun(1, 0),
        dict.fromkeys(mpirun(4, 0), ""),
        dict.fromkeys(OURS, ""),
    ],
    ids=[
        "none",
        "salloc",
        "sbatch",
        "interactive",
        "one",
        "empty",
        "odd",
        "empties",
        "mpi_one",
        "mpi_empty",
        "ours_empty",
    ],
)
def test_nobody_was_started_beside_it(environment):
    assert peers.find(environment, visible=8) is None


@pytest.mark.parametrize(
    ("environment", "visible", "gpus"),
    [
        (srun(8, 3), 8, (3,)),
        (srun(2, 1), 8, (4, 5, 6, 7)),
        (srun(4, 3, nodes=4), 8, ()),
        (srun(8, 5, nodes=4), 8, (4, 5, 6, 7)),
        (srun(3, 2, SLURM_STEP_TASKS_PER_NODE="2,1", SLURM_NODEID="1", SLURM_LOCALID="0"), 8, ()),
        (srun(8, 3), 0, ()),  # no GPUs
        (srun(8, 3, SLURM_GPUS_PER_TASK="1"), 1, ()),
        (srun(2, 1, SLURM_GPUS_PER_TASK="a100:2"), 2, ()),
        (srun(2, 1, SLURM_GPUS_PER_TASK="4", SLURM_GPU_BIND="none"), 8, (4, 5, 6, 7)),
        (srun(2, 1, SLURM_GPUS_PER_TASK="4"), 8, (4, 5, 6, 7)),
        (srun(2, 1, SLURM_GPU_BIND="per_task:2", SLURM_GPUS_ON_NODE="2"), 2, ()),
        (srun(2, 1, SLURM_GPUS_ON_NODE="8"), 4, ()),  # CUDA_VISIBLE_DEVICES of its own
        (srun(2, 1, SLURM_STEP_GPUS="0,1,2,3", SLURM_GPUS_ON_NODE=""), 2, ()),
        (srun(4, 1, SLURM_STEP_GPUS="0,1,2,3", SLURM_GPUS_ON_NODE="4"), 4, (1,)),
        (srun(8, 3, JAX_LOCAL_DEVICE_IDS="0,1"), 8, None),
        (mpirun(2, 1), 8, (4, 5, 6, 7)),
        (mpirun(8, 7), 8, (7,)),
        (OURS, 8, ()),
        (OURS | srun(2, 1), 8, (4, 5, 6, 7)),  # set by hand in a script that srun starts
    ],
)
def test_the_gpus_of_a_node_are_shared_alike(environment, visible, gpus):
    """One task a node with eight GPUs got one of them, by JAX's rule, without a word."""
    found = peers.find(environment, visible)
    assert found.gpus == gpus
    assert found.options().get("local_device_ids") == (None if gpus is None else list(gpus))


@pytest.mark.parametrize(
    ("environment", "count", "number", "address", "method"),
    [
        (srun(8, 3), 8, 3, "", "slurm"),
        (INTERACTIVE | srun(2, 1), 2, 1, "", "slurm"),
        (srun(2, 1, SLURM_NTASKS="8"), 2, 1, "", "slurm"),  # srun --preserve-env
        (srun(2, 1, SLURM_STEP_NUM_TASKS=""), 2, 1, "", "slurm"),
        (srun(2, 1, JAX_COORDINATOR_ADDRESS="host:9"), 2, 1, "host:9", ""),
        (mpirun(4, 2), 4, 2, "", "ompi"),
        (srun(2, 1) | mpirun(4, 2), 4, 2, "", "ompi"),  # mpirun starts its helpers by srun
        (mpirun(4, 2, OMPI_MCA_orte_hnp_uri="", JAX_COORDINATOR_ADDRESS="h:9"), 4, 2, "h:9", ""),
        (OURS, 2, 1, "host:1234", ""),
        (OURS | srun(8, 3), 2, 1, "host:1234", ""),
    ],
)
def test_who_says_it(environment, count, number, address, method):
    found = peers.find(environment)
    assert (found.count, found.number, found.address, found.method) == (
        count,
        number,
        address,
        method,
    )


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (srun(8, 3, SLURM_STEP_NUM_TASKS="many"), "SLURM_STEP_NUM_TASKS=many is not a number"),
        (srun(8, 3, SLURM_PROCID="-1"), "SLURM_PROCID=-1 is not a number"),
        (srun(8, 3, SLURM_PROCID="8"), "SLURM_PROCID=8 is not below SLURM_STEP_NUM_TASKS=8"),
        (srun(8, 3, SLURM_LOCALID=""), "SLURM_STEP_NODELIST is set, but not SLURM_LOCALID"),
        (srun(3, 1), "3 processes on this node cannot share its 8 GPUs alike: start one a node"),
        (srun(16, 1), "16 processes on this node cannot share its 8 GPUs"),
        (srun(8, 3, JAX_LOCAL_DEVICE_IDS="all"), "JAX_LOCAL_DEVICE_IDS=all: write numbers"),
        (mpirun(4, 2, OMPI_COMM_WORLD_RANK="4"), "OMPI_COMM_WORLD_RANK=4 is not below"),
        (mpirun(4, 2, OMPI_COMM_WORLD_LOCAL_RANK=""), "but not OMPI_COMM_WORLD_LOCAL_RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "4x"}, "OMPI_COMM_WORLD_SIZE=4x is not a number"),
        (OURS | {"JAX_PROCESS_ID": ""}, "JAX_COORDINATOR_ADDRESS is set, but not JAX_PROCESS_ID"),
        (OURS | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2 is not below JAX_NUM_PROCESSES=2"),
        (OURS | {"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS=host: write HOST:P"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(environment, words):
    with pytest.raises(ConfigError) as refused:
        peers.find(environment, visible=8)
    assert words in str(refused.value)


def test_open_mpi_5_needs_to_be_told_where_process_0_is(monkeypatch):
    environment = mpirun(4, 2, OMPI_MCA_orte_hnp_uri="")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"COORDINATOR_ADDRESS to its HOST:PORT, or .*pip install mpi4py"
    ):
        peers.find(environment)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name == "mpi4py")
    assert peers.find(environment).method == "mpi4py"


def test_jax_takes_what_it_is_given_for_all_of_it(monkeypatch):
    """The real function, up to where it would open a socket: JAX adds no choice of its own."""
    from jax._src import distributed

    for name, value in srun(2, 1).items():
        monkeypatch.setenv(name, value)
    seen = {}
    monkeypatch.setattr(
        distributed._jax,
        "get_distributed_runtime_client",
        lambda address, number, **_: seen.update(address=address, number=number) or 1 / 0,
    )
    monkeypatch.setattr(distributed.config, "update", lambda *words: seen.update([words]))
    state = distributed.State()
    with pytest.raises(ZeroDivisionError):
        state.initialize(**peers.find(srun(2, 1), visible=8).options())
    assert (seen["number"], state.num_processes) == (1, 2)
    assert seen["address"].startswith("node1:")
    assert seen["jax_cuda_visible_devices"] == "4,5,6,7"
    seen.clear()
    with pytest.raises(ZeroDivisionError):
        distributed.State().initialize(**peers.find(srun(2, 1), visible=0).options())
    assert "jax_cuda_visible_devices" not in seen  # all of them


def test_a_run_of_its_own_joins_nobody():
    """A sweep's runs, where the sweep is one of several tasks with a --shard each."""
    for environment in (srun(4, 1), mpirun(4, 1), OURS):
        kept = peers.alone({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"} | environment)
        assert peers.find(kept, visible=8) is None
        assert (kept["PATH"], kept["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1")


# Starting ----------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """What jax.distributed.initialize was given, once each time; nothing of this shell."""
    for name in {*srun(2, 0), *mpirun(2, 0), *OURS, "CUDA_VISIBLE_DEVICES", "XLA_FLAGS"}:
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **options: calls.append(options))
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    return calls


def machine(monkeypatch, gpus: int, wheels: bool = True, files: dict | None = None) -> None:
    """A machine with so many GPUs, by what lies in /dev and /sys."""
    found = {"/dev/nvidia[0-9]*": [f"/dev/nvidia{i}" for i in range(gpus)]} | (files or {})
    monkeypatch.setattr(glob, "glob", lambda pattern: found.get(pattern, []))
    names = ("jax_cuda13_plugin",) if wheels else ()
    monkeypatch.setattr(
        processes.importlib.util, "find_spec", lambda name: name if name in names else None
    )


@pytest.mark.parametrize("environment", [ALLOCATION, BATCH, INTERACTIVE, mpirun(1, 0)])
def test_one_process_starts_alone_whatever_the_allocation_says(started, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.start(100)
    assert started == []


def test_a_task_a_node_takes_all_eight_gpus(started, monkeypatch):
    machine(monkeypatch, 8)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", list)
    for name, value in srun(2, 1, nodes=2).items():
        monkeypatch.setenv(name, value)
    processes.start(100)
    expected = {"num_processes": 2, "process_id": 1, "local_device_ids": []}
    method = {"cluster_detection_method": "slurm", "heartbeat_timeout_seconds": 100}
    assert started == [expected | method]


def test_a_cpu_run_on_a_machine_with_gpus_shares_none(started, monkeypatch):
    machine(monkeypatch, 8)  # the tests' JAX_PLATFORMS is cpu
    for name, value in srun(3, 1).items():
        monkeypatch.setenv(name, value)
    processes.start(100)
    assert started[0]["local_device_ids"] == []


def test_an_address_alone_names_no_group(started, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1234")
    with pytest.raises(ConfigError, match="is set, but not JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        processes.start(100)


def test_only_a_gpu_is_asked_for_the_same_bits(started, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    processes.start(100, deterministic=True)
    assert processes.os.environ["XLA_FLAGS"] == "--xla_a=1"
    machine(monkeypatch, 1)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", list)
    processes.start(100, deterministic=True)
    assert processes.os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_gpu_deterministic_ops=true"


# Which platform ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (2, None, ["0", "1"]),
        (2, "1", ["1"]),
        (2, "GPU-1a2b,MIG-3c", ["GPU-1a2b", "MIG-3c"]),
        (2, "", []),
        (2, "-1", []),
        (2, "NoDevFiles", []),  # Slurm's word for none
        (2, "1,-1,0", ["1"]),  # CUDA stops at the first that it does not know
        (0, None, []),
    ],
)
def test_the_gpus_that_are_seen(monkeypatch, gpus, visible, expected):
    machine(monkeypatch, gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert processes.cards() == expected
    assert processes.has_gpu() == bool(expected)


def test_a_gpu_without_the_wheels_is_said_and_left(monkeypatch, capsys):
    machine(monkeypatch, 1, wheels=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")  # as good as unset
    processes.choose_platform()
    assert processes.os.environ["JAX_PLATFORMS"] == "cpu"
    said = capsys.readouterr().err
    assert f"CUDA wheels are not installed: {installation.extra('cuda')}" in said
    assert not processes.has_gpu()


WSL = {"/dev/dxg": ["/dev/dxg"], "/usr/lib/wsl/lib/libcuda.so*": ["/usr/lib/wsl/lib/libcuda.so.1"]}


def test_wsl2_has_a_gpu_by_another_name(monkeypatch):
    machine(monkeypatch, 0, files=WSL)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes.has_gpu()
    assert processes.cards() == ["0"]
    machine(monkeypatch, 0, files={"/dev/dxg": ["/dev/dxg"]})  # without NVIDIA's driver
    assert not processes.has_gpu()


@pytest.mark.parametrize(("vendor", "expected"), [("0x1ae0\n", True), ("0x8086\n", False)])
@pytest.mark.parametrize("nodes", ["/dev/accel*", "/dev/vfio/[0-9]*"])
def test_only_googles_accelerators_are_tpus(monkeypatch, tmp_path, vendor, expected, nodes):
    """Intel's laptops have /dev/accel too, and virtual machines /dev/vfio/14."""
    (tmp_path / "vendor").write_text(vendor)
    files = {nodes: ["/dev/x"], "/sys/bus/pci/devices/*/vendor": [str(tmp_path / "vendor")]}
    machine(monkeypatch, 0, files=files)
    assert processes.has_tpu() is expected


@pytest.mark.parametrize(
    ("platforms", "gpus", "wheels", "words"),
    [
        ("cuda", 0, True, "JAX_PLATFORMS=cuda, but there is no NVIDIA GPU here"),
        ("gpu", 0, True, "JAX_PLATFORMS=gpu, but there is no NVIDIA GPU here"),
        ("cuda", 1, False, "JAX_PLATFORMS=cuda, but JAX's CUDA wheels are not installed here"),
        ("tpu", 1, True, "JAX_PLATFORMS=tpu, but there is no TPU here"),
    ],
)
def test_a_platform_that_is_not_here_is_refused(monkeypatch, platforms, gpus, wheels, words):
    machine(monkeypatch, gpus, wheels)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    with pytest.raises(ConfigError, match=words):
        processes.choose_platform()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Unable to initialize backend 'cudaa': no such.\n (set JAX_PLATFORMS='')"),
        AssertionError(),
    ],
)
def test_what_jax_says_of_a_platform_is_one_line(monkeypatch, error):
    def devices() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cudaa")
    with pytest.raises(ConfigError) as refused:
        processes.open_devices()
    line = str(refused.value)
    assert line.startswith("JAX_PLATFORMS=cudaa, but JAX finds no such device here: ")
    assert line.endswith("leave it unset, and what is here is used")
    assert "\n" not in line
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(type(error)):  # a bug, or a broken driver: JAX's own words
        processes.open_devices()
