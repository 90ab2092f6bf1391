"""Eight H200s that are not here: `python -m tests.perf.h200 CONFIG [FIELD=VALUE ...]`.

It prints, for each step of a config, the peak memory of a GPU and the kernels of cuDNN's
fused attention in the program. JAX's CUDA wheels hold the compiler; no GPU is needed, and
nothing runs: what a kernel does with the numbers is not seen, nor what cuDNN itself refuses.
"""

import collections
import importlib.util
import re
import sys

import jax

# NVIDIA's data sheets of the H200 (SXM) and the CUDA guide's table of compute capability 9.0,
# in the words of XLA's GpuTargetConfigProto.
_H200 = """
gpu_device_info {
  name: "NVIDIA H200"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 151397597184
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H200"
"""

FUSED = re.compile(r"__cudnn\$fmha\w+")


def missing() -> str:
    """Why nothing can be compiled for GPUs here; "" if it can."""
    if importlib.util.find_spec("jax_cuda13_plugin"):
        return ""
    return "JAX's CUDA wheels hold the compiler (4.5 GB): pip install -e '.[test,cuda]'"


def devices() -> list[jax.Device]:
    """Eight in one machine."""
    from jax.experimental import topologies

    # What was compiled for absent devices can be stored, but not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h200", target_config=_H200, topology="1x1x8"
    ).devices


def compiled(config, only: str | None = None, **options) -> dict[str, jax.stages.Compiled]:
    """Every step of a resolved config, or `only` one, as the trainer builds it.

    Args:
      options: of the compiler.
    """
    from pit_jax.parallel import mesh as meshes
    from pit_jax.perf import preflight

    mesh = meshes.make_mesh(config.mesh, devices())
    programs, _ = preflight._programs(config, mesh)
    found = {}
    for name, program in programs.items():
        if only in (None, name):
            with jax.set_mesh(mesh):  # nothing concrete may run in here
                lowered = program.function.lower(*program.arguments)
                found[name] = lowered.compile(compiler_options=options)
    return found


def main(config: str, fields: list[str]) -> None:
    from pit_jax import configfile

    resolved = configfile.load(config, [f"--config.{field}" for field in fields])
    for name, program in compiled(resolved).items():
        memory = program.memory_analysis()
        peak = max(memory.peak_memory_in_bytes, memory.argument_size_in_bytes)
        kernels = collections.Counter(FUSED.findall(program.as_text()))
        listed = ", ".join(f"{n} {kernel}" for kernel, n in sorted(kernels.items()))
        size = f"{peak / 2**30:.2f} GiB"
        print(" ".join([config, *fields]), name, size, listed or "no fused attention", sep="; ")


if __name__ == "__main__":
    if missing():
        sys.exit(missing())
    main(sys.argv[1], sys.argv[2:])
