"""Every job by its name on the command line."""

import reasoning_jax.jobs
import rec_jax.jobs
from core_jax.jobs import Job

JOBS: dict[str, Job] = {**rec_jax.jobs.JOBS, **reasoning_jax.jobs.JOBS}
