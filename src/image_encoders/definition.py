"""A Python file that somebody wrote, run as a module that imports the modules beside it and changes nothing else.

    definition = Definition(path)
    definition.run()        the module

`import blocks` in it finds `blocks.py` or a package `blocks` beside it, before what is installed and after the standard
library; `from .blocks import Block` finds the same. These siblings belong to this definition: another one's
`import blocks` is another module, and no other `import blocks` finds them. `sys.path` and the import system stay
as they are: the definition and its siblings have builtins of their own, in which `__import__` is `Definition._import`.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import itertools
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

_numbers = itertools.count()


class Definition:
    """A definition file and the modules that it imports from its folder.

    digests: the sha256 of the file, at "", and of each sibling that it has imported, at the sibling's name
    """

    def __init__(self, path: Path):
        self.path = path
        self.digests: dict[str, str] = {}
        self._name = f"image_encoders_definition_{next(_numbers)}"  # the package that its modules are in
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._folder = str(path.resolve().parent)
        self._siblings: dict[str, bool] = {}  # by the first part of an imported name: whether it lies beside the file
        self._modules = {self._name: ModuleType(self._name)}
        vars(self._modules[self._name])["__path__"] = []  # what looks there, and does not ask `_import`, finds nothing
        self._files: dict[str, str] = {}  # by the path that tracebacks have: the name for messages
        self._running = _Running()
        self._sealed = False

    def run(self) -> ModuleType:
        """The file as a module; raises whatever it raises, and OSError where it cannot be read."""
        name = f"{self._name}.{self.path.stem.replace('.', '_')}"
        spec = spec_from_file_location(name, self.path, loader=SourceFileLoader(name, str(self.path)))
        assert spec is not None
        sys.modules[self._name] = self._modules[self._name]
        return self._execute(spec, "")

    def seal(self) -> None:
        """From now on no further sibling may be imported: what `digests` are used for would not cover it."""
        self._sealed = True

    def forget(self) -> None:
        """Take its modules out of `sys.modules`, where dataclasses, type hints and the like look them up."""
        for name in list(self._modules):
            sys.modules.pop(name, None)

    def located(self, error: BaseException) -> str:
        """What went wrong, and in which line of the definition or its siblings, where it was there."""
        places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, SyntaxError):
            places.append((error.filename or "", error.lineno or 0))
        mine = [(self._files[file], line) for file, line in places if file in self._files]
        if not mine:
            return f"{type(error).__name__}: {error}"
        sibling, line = mine[-1]
        where = f"{sibling}, line {line}" if sibling else f"line {line}"
        return f"{where}: {type(error).__name__}: {error}"

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What `__import__` gives in the definition and its siblings."""
        package = self._name
        if level:
            package = (globals or {}).get("__package__") or ""
            if not self._is_own(package):
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            if package.count(".") < level - 1:
                raise ImportError(f"attempted relative import beyond the folder of {self.path}")
            package = package.rsplit(".", level - 1)[0]
        elif self._is_own(name):  # as `import_module(f"{__name__}.part")` spells it
            name = name[len(self._name) + 1 :]
        elif not self._is_sibling(name.partition(".")[0]):
            found = builtins.__import__(name, globals, locals, fromlist or (), level)
            return self._importlib() if found is importlib else found
        module = self._module(f"{package}.{name}".rstrip("."))
        if not fromlist:
            return self._module(f"{package}.{name.partition('.')[0]}")
        for attribute in getattr(module, "__all__", ()) if "*" in fromlist else fromlist:
            if hasattr(module, "__path__") and not hasattr(module, attribute):
                self._submodule(f"{module.__name__}.{attribute}")
        return module

    def _importlib(self) -> ModuleType:
        """`importlib`, with an `import_module` that finds the siblings."""
        module = ModuleType("importlib")
        vars(module).update(vars(importlib), import_module=self._import_module)
        return module

    def _import_module(self, name: str, package: str | None = None) -> ModuleType:
        level = len(name) - len(name.lstrip("."))
        return self._import(name[level:], {"__package__": package}, None, ("__name__",), level)

    def _is_own(self, name: str) -> bool:
        return name == self._name or name.startswith(f"{self._name}.")

    def _is_sibling(self, name: str) -> bool:
        """Whether `import name` means a module beside the definition. Found out once, so that it stays so."""
        if name not in self._siblings:
            spec = _find(f"{self._name}.{name}", [self._folder])
            if spec is None or name in sys.stdlib_module_names:
                found = False
            elif spec.loader is None:  # a folder without __init__.py: anything that is installed goes first
                found = name not in sys.modules and find_spec(name) is None
            else:
                found = True
            self._siblings.setdefault(name, found or f"{self._name}.{name}" in self._modules)
        return self._siblings[name]

    def _submodule(self, name: str) -> None:
        try:
            self._module(name)
        except ModuleNotFoundError as error:  # then the importing statement says what is missing
            if error.name != name:
                raise

    def _module(self, name: str) -> ModuleType:
        """One of the definition's modules by its full name, run now unless it has been."""
        # No lock: two threads that import it for the first time at once both run it, and the first result counts for
        # both. With a lock, a process that was forked meanwhile would wait forever.
        known = self._known(name)
        if known is not None:
            return known
        parent, _, last = name.rpartition(".")
        package = self._module(parent)
        known = self._known(name)  # its package may have imported it
        if known is not None:
            return known
        shown = name[len(self._name) + 1 :]
        path = [self._folder] if parent == self._name else list(getattr(package, "__path__", ()))
        spec = _find(name, path)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {shown!r}", name=name)
        if self._sealed:
            raise ImportError(
                f"{shown} is imported for the first time after loading, so the fingerprint does not cover it; "
                "import it at the top of the definition",
                name=name,
            )
        module = self._execute(spec, shown)
        setattr(package, last, module)
        return module

    def _known(self, name: str) -> ModuleType | None:
        return self._modules.get(name) or self._running.modules.get(name)

    def _execute(self, spec: ModuleSpec, shown: str) -> ModuleType:
        """The module of a spec, made and run."""
        name, module = spec.name, module_from_spec(spec)
        loader, file = spec.loader, spec.origin or ""
        source = b""  # a folder without __init__.py has none
        if isinstance(loader, (SourceFileLoader, ExtensionFileLoader)):
            source = loader.get_data(file)
            self.digests[shown] = hashlib.sha256(source).hexdigest()
            self._files[file] = Path(file).name if shown else ""
        self._running.modules[name] = sys.modules[name] = module
        try:
            if isinstance(loader, SourceFileLoader):
                vars(module)["__builtins__"] = self._builtins
                # The very bytes that were digested, and none that were compiled earlier.
                exec(compile(source, file, "exec", dont_inherit=True), vars(module))
            elif loader is not None:
                loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        finally:
            del self._running.modules[name]
        sys.modules[name] = self._modules.setdefault(name, module)
        return self._modules[name]


class _Running(threading.local):
    """The modules that a thread is running, which imports in a circle see as far as they have come."""

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}


def _find(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    """The module that a name's last part means in the first of the folders that has it."""
    loaders: list[tuple[Any, list[str]]] = [
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (SourceFileLoader, SOURCE_SUFFIXES),
    ]
    specs = (FileFinder(folder, *loaders).find_spec(name) for folder in folders)
    return next((spec for spec in specs if spec is not None), None)
