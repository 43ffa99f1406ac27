"""Large pages for big buffers of the host: on a CPU a step of SmolLM2 takes a fifth less time.

XLA takes the scratch of a whole step as one block and gives it back at the step's end, so that
every step faults in, and the kernel clears, the same gigabytes anew, 4 KiB at a time. Where Linux
grants large pages to who asks for them (`madvise`), glibc asks if a tunable tells it to, which it
reads when a process starts: so the process starts itself anew.
Numbers: `docs/benchmarks.md`. The C library could also keep what was freed, but then the gaps
between buffers of different sizes cost more than half of the memory again.

Dimension key: none.
"""

import os
import pathlib
import sys

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_ENABLED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_large_pages() -> None:
    """Starts this process anew, under its number, unless it has the tunable or cannot use it.

    To be called first, before anything is imported that takes long or touches devices. Where the
    environment has `GLIBC_TUNABLES`, empty or not, the user has decided, and nothing happens.
    """
    if not wanted(_ENABLED):
        return
    os.environ[_VARIABLE] = _TUNABLE
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def wanted(enabled: pathlib.Path) -> bool:
    """Whether the tunable would do something that is not done yet.

    Args:
      enabled: the file in which Linux says who gets large pages.
    """
    if _VARIABLE in os.environ or not sys.platform.startswith("linux"):
        return False
    try:
        return "[madvise]" in enabled.read_text(encoding="ascii")
    except OSError:
        return False
