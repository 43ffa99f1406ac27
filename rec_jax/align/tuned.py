"""Settings of every preference method that the demo's sweep chose; see `docs/alignment.md`.

Dimension key: none.
"""

import dataclasses

from rec_jax.align.methods import MethodConfig, PreferenceMethod


def tuned(method: PreferenceMethod) -> MethodConfig:
    """A method with the settings that the demo's sweep chose for it."""
    return dataclasses.replace(MethodConfig(), method=method)
