"""Which targets the installed packages support, and how mod-edge was installed.

Only package metadata is read, nothing is imported. Whether a package works (it may lack a driver, a
GPU or a library) is checked by `mod-edge doctor`.
"""

import json
import re
from importlib import metadata
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mod_edge.plan.targets import KV_CACHE_UPDATE_VERSION, TARGETS

OWN_PACKAGE = "mod-edge"
CUDA_PACKAGE = "onnxruntime-gpu"  # has the same module as onnxruntime, with CUDA


def installed_targets() -> dict[str, str]:
    """The installed package and version for each target, in the order of `TARGETS`.

    One TensorRT is listed for one target: the newest that it can compile for.
    """
    found: dict[str, str] = {}
    for target, module in (("cpu", "onnxruntime"), ("rtx", "tensorrt_rtx")):
        if not is_missing(module):
            found[target] = f"{module} {_module_version(module) or '(unknown version)'}"
    if "cpu" in found and (version := installed_version(CUDA_PACKAGE)):
        found["cuda"] = f"{CUDA_PACKAGE} {version}"
    if not is_missing("tensorrt") and (version := _module_version("tensorrt")):
        release = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        has_kv_cache = release >= KV_CACHE_UPDATE_VERSION
        found["tensorrt" if has_kv_cache else "tensorrt-delta"] = f"tensorrt {version}"
    return {name: found[name] for name in TARGETS if name in found}


def describe_targets() -> list[dict[str, Any]]:
    """Every target as JSON; `found` is the installed package and version, or None."""
    found = installed_targets()
    return [
        {
            "target": target.name,
            "runs_on": target.runs_on,
            "dialect": target.dialect,
            "opset": target.opset,
            "precisions": list(target.precisions),
            "found": found.get(target.name),
        }
        for target in TARGETS.values()
    ]


def install_command(*extras: str, options: str = "") -> str:
    """The pip command that installs mod-edge from the same place as this installation.

    pip records that place in `direct_url.json` (PEP 610): a checkout, a wheel or a repository.
    Without such a record mod-edge came from a package index.

    Args:
        extras: of pyproject.toml, such as "cpu".
        options: of `pip install`.
    """
    wanted = f"[{','.join(extras)}]" if extras else ""
    origin = _origin()
    url, vcs = origin.get("url", ""), origin.get("vcs_info")
    if vcs:
        requirement = f"{OWN_PACKAGE}{wanted} @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    elif url.startswith("file:"):
        requirement = url2pathname(urlsplit(url).path) + wanted
    else:
        requirement = f"{OWN_PACKAGE}{wanted}" + (f" @ {url}" if url else "")
    if origin.get("dir_info", {}).get("editable"):
        options = f"{options} -e".strip()
    return f'pip install {options} "{requirement}"' if options else f'pip install "{requirement}"'


def _origin() -> dict[str, Any]:
    """Pip's record of where mod-edge came from; empty if there is none.

    In a checkout, setuptools' egg-info hides the installation that has the record.
    """
    for distribution in metadata.distributions(name=OWN_PACKAGE):
        if text := distribution.read_text("direct_url.json"):
            origin: dict[str, Any] = json.loads(text)
            return origin
    return {}


def _module_version(module: str) -> str | None:
    """Version of the package that provides a module; its name may be longer."""
    packages = (module.replace("_", "-"), *metadata.packages_distributions().get(module, ()))
    return next(filter(None, map(installed_version, packages)), None)


def is_missing(module: str) -> bool:
    """Whether there is no such module, or just an empty folder, which Python would import too."""
    spec = find_spec(module)
    return spec is None or spec.origin is None


def installed_version(package: str) -> str | None:
    """Version in the package's metadata; None if not installed."""
    try:
        return metadata.version(package)
    except Exception:  # broken metadata raises KeyError or TypeError, depending on the Python
        return None
