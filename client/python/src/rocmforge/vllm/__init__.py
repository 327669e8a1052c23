"""A loader for vLLM, whose weights are those that the daemon has in memory.

    vllm serve MODEL --load-format rocmforge

vLLM finds this package by its entry point, once both are installed for the same Python. docs/engines.md says which weights
are shared and which are copied.
"""

from __future__ import annotations

from ._options import WAYS, Options
from ._report import Report, reports

__all__ = ["WAYS", "Options", "Report", "register", "reports"]


def register() -> None:
    """Registers the loader with vLLM, which calls this in each of its processes, maybe several times."""
    from vllm.model_executor.model_loader import register_model_loader

    from ._loader import RocmforgeLoader

    register_model_loader("rocmforge")(RocmforgeLoader)
