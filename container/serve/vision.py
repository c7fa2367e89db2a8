"""torchvision, where there is one, without torch's compiler, which it imports for one function: 1.3 s, and 130 MB.

The function, `is_compile_supported`, says whether a GPU has a compiled form of an operator of detection models.
"""

import contextlib
import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


def import_torchvision() -> None:
    """Import torchvision, and the compiler once something asks for it."""
    if "torchvision" in sys.modules or COMPILER in sys.modules:
        return
    importlib.import_module("torch")
    stand_in = ModuleType(COMPILER)

    def real(name: str) -> Any:
        if name.startswith("__"):  # the import machinery looks for these
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)

    stand_in.is_compile_supported = lambda device_type: real("is_compile_supported")(device_type)  # type: ignore[attr-defined]
    stand_in.__getattr__ = real  # type: ignore[method-assign]
    sys.modules[COMPILER] = stand_in
    try:
        with contextlib.suppress(ModuleNotFoundError):  # a small image for the CPU may do without
            importlib.import_module("torchvision")
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
