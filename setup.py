"""The repository root is the package: the shipped files are flat because Hub repositories are.

Everything else is in pyproject.toml.
"""

from setuptools import find_packages, setup

PACKAGE = "glm_transformers"
folders = find_packages(include=["hub_repository", "conversion", "training", "evaluation", "apps"])

setup(
    script_name="setup.py",  # so that it is known among the modules of the root, and left out
    packages=[PACKAGE, *(f"{PACKAGE}.{folder}" for folder in folders)],
    package_dir={PACKAGE: "."} | {f"{PACKAGE}.{folder}": folder for folder in folders},
)
