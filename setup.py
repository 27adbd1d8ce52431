"""What setup.cfg cannot say: every package is found, and `recipes/` is installed inside slimvit."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["slimvit", "slimvit.*"]), "slimvit.recipes"],
    package_dir={"slimvit.recipes": "recipes"},
)
