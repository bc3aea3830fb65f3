"""Packages that only the paper's own scores need: the extra `paper`, kept out of the base install."""

from __future__ import annotations

import importlib
from types import ModuleType

from freezeasguard.errors import FreezeAsGuardError


def paper_package_missing(name: str, reason: object) -> FreezeAsGuardError:
    """The error to raise where `name` cannot be imported."""
    return FreezeAsGuardError(
        f'{name} cannot be imported ({reason}); install the extra with `pip install -e ".[paper]"`, in an environment '
        f"of its own whose torchvision matches its torch"
    )


def import_paper_package(name: str) -> ModuleType:
    """A package of the extra `paper`.

    Raises:
        FreezeAsGuardError: the package is absent, or its torchvision was built for another torch.
    """
    try:
        return importlib.import_module(name)
    # torchvision beside another torch build raises RuntimeError: operator torchvision::nms does not exist
    except (ImportError, RuntimeError) as error:
        raise paper_package_missing(name, error) from error
