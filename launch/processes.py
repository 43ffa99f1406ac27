"""Joins the processes of a job: they meet, compare what they have, and start JAX as one.

Dimension key: none.
"""

import logging
import os
import sys
import time
from typing import Any, NoReturn

import jax

from launch import xla_flags
from launch.agreement import check_agreement, check_shared, facts_of
from launch.options import Options
from launch.places import Place
from launch.rendezvous import Rendezvous

_SHUTDOWN_SECONDS = 60
_ERROR_PAUSE = 1.0
_LOGGER = logging.getLogger(__name__)


def join(place: Place, options: Options, config: Any) -> dict[str, str]:
    """Makes this process a part of its job; of a job of one process nothing is asked.

    Args:
      place: which process this is.
      options: time limits and XLA flags.
      config: the job's config, which must be that of all processes.

    Returns:
      What this process has, see `launch.agreement.facts_of`; of a job of one process only when
      a dry run wants to print it.

    Raises:
      ConfigError: they do not come together, or disagree.
    """
    if options.chip:
        added = xla_flags.set_flags(options.chip)
        _LOGGER.info("XLA flags of %s: %s", options.chip, " ".join(added) or "all set before")
    if place.num_processes == 1:
        return facts_of(config) if options.dry_run else {}
    with Rendezvous(
        place.coordinator, place.num_processes, place.process_id, options.connect_timeout
    ) as meeting:
        facts = facts_of(config)
        check_agreement(meeting.exchange(facts), meeting.hosts)
        if not options.dry_run:
            check_shared(meeting, place.process_id, config.run_dir)
    jax.distributed.initialize(
        coordinator_address=place.coordinator,
        num_processes=place.num_processes,
        process_id=place.process_id,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",  # it is known, and was compared
        initialization_timeout=options.connect_timeout,
        heartbeat_timeout_seconds=options.heartbeat_timeout,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    return facts


def leave(code: int) -> NoReturn:
    """Ends a process of several after an error, without waiting for the others.

    They may wait for this one: that it has gone, their heartbeat or their supervisor tells them.
    Process 0 goes a little later, since it takes JAX's service with it, and the others may be
    about to say what is wrong themselves.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(_ERROR_PAUSE)
    os._exit(code)


def joined() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()
