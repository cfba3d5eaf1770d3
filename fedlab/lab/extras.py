"""What is needed by a part of the laboratory alone, and is not installed with fedlab."""

from __future__ import annotations

import importlib
from typing import Any

from fedlab.errors import InvalidRequest


def need(module: str, package: str) -> Any:
    """Import an optional module.

    Args:
        module: What to import.
        package: What pip calls it.

    Raises:
        InvalidRequest: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidRequest(
            f"this needs {package}: pip install 'fedlab-memory[lab]', or pip install {package}"
        ) from error
