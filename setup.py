"""Finds the packages: every folder with an `__init__.py`; those at the root go under `mod_edge`.

Everything else is in pyproject.toml, which cannot express this rule.
"""

from pathlib import Path

from setuptools import setup

ROOT_FOLDERS = ("mod_edge", "export", "runtime", "profiles")


def package_name(folder: Path) -> str:
    """The dotted name by which the folder is imported."""
    parts = folder.parts if folder.parts[0] == "mod_edge" else ("mod_edge", *folder.parts)
    return ".".join(parts)


folders = sorted(path.parent for name in ROOT_FOLDERS for path in Path(name).rglob("__init__.py"))
package_dir = {package_name(folder): folder.as_posix() for folder in folders}

setup(packages=list(package_dir), package_dir=package_dir)
