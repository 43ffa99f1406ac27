"""GPUs as XLA's compiler wants them described, from NVIDIA's public specifications.

Compute capability and limits per block and multiprocessor: CUDA C++ Programming Guide, "Compute
Capabilities". Clocks, multiprocessors, memory and caches: the data sheets and architecture papers
of A10, A100 (SXM, 80 GB) and H100 (SXM, 80 GB). They decide how fusions are tiled, not results.

Dimension key: none.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gpu:
    """What differs between GPUs; sizes in bytes, clocks in GHz."""

    model: str
    capability: tuple[int, int]
    cores: int
    clock: float
    memory_bandwidth: int
    memory: int
    cache: int
    shared_per_core: int
    shared_per_block: int
    threads_per_core: int
    units_per_core: int


_GPUS = {
    "a10": _Gpu(
        model="NVIDIA A10",
        capability=(8, 6),
        cores=72,
        clock=1.695,
        memory_bandwidth=600_000_000_000,
        memory=24_000_000_000,
        cache=6 << 20,
        shared_per_core=100 << 10,
        shared_per_block=99 << 10,
        threads_per_core=1536,
        units_per_core=128,
    ),
    "a100": _Gpu(
        model="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        clock=1.41,
        memory_bandwidth=2_039_000_000_000,
        memory=80_000_000_000,
        cache=40 << 20,
        shared_per_core=164 << 10,
        shared_per_block=163 << 10,
        threads_per_core=2048,
        units_per_core=64,
    ),
    "h100": _Gpu(
        model="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        cores=132,
        clock=1.98,
        memory_bandwidth=3_350_000_000_000,
        memory=80_000_000_000,
        cache=50 << 20,
        shared_per_core=228 << 10,
        shared_per_block=227 << 10,
        threads_per_core=2048,
        units_per_core=128,
    ),
}


def gpu_target(name: str) -> str:
    """The text of XLA's `GpuTargetConfigProto` of a GPU of `launch.aot.chips`."""
    gpu = _GPUS[name]
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 << 10}
  shared_memory_per_core: {gpu.shared_per_core}
  shared_memory_per_block_optin: {gpu.shared_per_block}
  threads_per_core_limit: {gpu.threads_per_core}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.memory_bandwidth}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{gpu.model}"
"""
