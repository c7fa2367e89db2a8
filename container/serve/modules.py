"""The Python files of one of several models in a process: imported under names that no other model sees.

Two models may each have an `inference.py` and a `helper.py`. While a model loads, its directory stands on `sys.path`
and its modules in `sys.modules`; afterwards neither does, and an import inside one of its functions, made later, still
finds them. Files with the same content share their compiled code, which cannot change: of many versions of one
architecture only the weights and the modules' own dictionaries are there many times.
"""

import builtins
import hashlib
import importlib.util
import linecache
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any
from weakref import WeakValueDictionary

MODULE_PREFIX = "slipway_user_"  # the user's file never takes the name of a package it wants to import
_IMPORT_LOCK = threading.RLock()
_SHARED_CODE: WeakValueDictionary[bytes, CodeType] = WeakValueDictionary()
"""Digest of a file's content -> its code, as long as a module that was made from it lives."""


class PrivateModules:
    """The modules below `directory`, one model's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names = {path.stem for path in directory.iterdir()} if directory.is_dir() else set()
        self._modules: dict[str, ModuleType] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._shown = False

    @contextmanager
    def visible(self) -> Iterator[None]:
        """While this lasts, imports from the directory work; one model at a time."""
        with _IMPORT_LOCK:
            if self._shown:  # an import while the model loads
                yield
                return
            path, known = list(sys.path), dict(sys.modules)
            sys.path.insert(0, str(self._directory))
            sys.path_hooks.insert(0, self._finder)
            sys.modules.update(self._modules)
            self._shown = True
            try:
                yield
            finally:
                self._shown = False
                sys.path[:] = path
                sys.path_hooks.remove(self._finder)
                self._drop(sys.path_importer_cache)
                self._take_out(known)

    def load(self, path: Path) -> ModuleType:
        """The model's program itself, under a name that hides no package; only while `visible`."""
        name = MODULE_PREFIX + path.stem
        loader = self._loader(name, str(path))
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look their module up here
        loader.exec_module(module)
        return module

    def forget(self) -> None:
        """Drop what Python's own caches hold of these files; the modules go with the last function that uses them."""
        self._modules.clear()
        self._drop(linecache.cache)

    def _drop(self, cache: MutableMapping[str, Any]) -> None:
        for path in [path for path in list(cache) if self._owns(path)]:
            cache.pop(path, None)

    def _take_out(self, known: Mapping[str, ModuleType]) -> None:
        for name, module in list(sys.modules.items()):
            if known.get(name) is module or not (name.startswith(MODULE_PREFIX) or self._owns(_origin(module))):
                continue
            self._modules[name] = module
            if name in known:
                sys.modules[name] = known[name]
            else:
                del sys.modules[name]

    def _owns(self, path: str) -> bool:
        return Path(path).is_relative_to(self._directory)

    def _finder(self, directory: str) -> FileFinder:
        if not self._owns(directory):
            raise ImportError(directory)
        return FileFinder(
            directory,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (self._loader, SOURCE_SUFFIXES),  # type: ignore[arg-type]
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )

    def _loader(self, name: str, path: str) -> "_Loader":
        return _Loader(name, path, self._builtins)

    def _import(
        self,
        name: str,
        names: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        wanted: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What `import` does in the model's own files: the model's modules first, the process's otherwise."""
        if level == 0 and name.partition(".")[0] not in self._names:
            return builtins.__import__(name, names, local, wanted or (), level)
        module = self._modules.get(name)
        if module is not None and wanted and not level and not hasattr(module, "__path__"):
            return module
        with self.visible():
            return builtins.__import__(name, names, local, wanted or (), level)


def _origin(module: ModuleType) -> str:
    """The file, or the directory of a package without one."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")


class _Loader(SourceFileLoader):
    """Runs a model's file with the model's own `import`, from code that files of the same content share."""

    def __init__(self, name: str, path: str, own_builtins: dict[str, Any]) -> None:
        super().__init__(name, path)
        self._builtins = own_builtins
        self._code: CodeType | None = None  # held here, and so by the module

    def get_code(self, fullname: str) -> CodeType:
        """Compiled from the source each time it is new: the model's directory holds no bytecode we would trust."""
        source = self.get_data(self.path)
        digest = hashlib.sha256(source).digest()
        code = _SHARED_CODE.get(digest)
        if code is None:
            code = _SHARED_CODE[digest] = self.source_to_code(source, self.path)
        self._code = code
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._builtins
        super().exec_module(module)
