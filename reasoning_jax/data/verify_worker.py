"""A worker process that runs the verifiers of procedural tasks. `verifiers.py` starts it.

    python -m reasoning_jax.data.verify_worker MEMORY_MB

Dimension key: none.
"""

import importlib

from reasoning_jax.answers.worker import serve
from reasoning_jax.data.procedural import score


def judge(request: dict[str, str]) -> tuple[bool, str]:
    """Judges one answer; an error of the verifier is about the answer, which is then wrong."""
    return score(request["task"], request["entry"], request["answer"]), "verifier"


if __name__ == "__main__":
    importlib.import_module("reasoning_gym")  # a time limit counts only work
    serve(judge, ())
