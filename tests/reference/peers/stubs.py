# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Imports some files of a large package without the rest of it, and without what it depends on.

    stubs.install(folder, ("vllm", "torch"), {"vllm.logger": {"init_logger": logging.getLogger}})
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    stubs.imported()

Modules of these packages whose file lies in the folder are the real ones. All others are made up: they have
the names that they were given, and any other name is a placeholder, which is good for import statements,
annotations, base classes and decorators. After `imported()` whoever calls a placeholder, or asks whether it
is true, gets an error, so that nothing made up decides anything unnoticed.
"""
import importlib
import importlib.abc
import importlib.machinery
import pathlib
import sys
import types

_importing = True


def imported():
    global _importing
    _importing = False


class _PlaceholderType(type):
    def __getattr__(cls, name):
        if name.startswith("__") or not cls.__dict__.get("_made_up"):
            raise AttributeError(f"{cls.__name__} has no {name}")
        return placeholder(f"{cls.__name__}.{name}")

    def __call__(cls, *args, **kwargs):
        if not cls.__dict__.get("_made_up"):  # a real class with a placeholder for a base
            return super().__call__(*args, **kwargs)
        cls._only_while_importing()
        decorates = len(args) == 1 and not kwargs and isinstance(args[0], (type, types.FunctionType))
        return args[0] if decorates else cls

    def __bool__(cls):
        if cls.__dict__.get("_made_up"):
            cls._only_while_importing()
        return True

    def _only_while_importing(cls):
        if not _importing:
            raise NotImplementedError(f"{cls.__name__} is made up: unpack its file, or say what it is")

    def __getitem__(cls, _):
        return cls

    def __or__(cls, _):
        return cls

    __ror__ = __or__


def placeholder(name):
    return _PlaceholderType(name, (), {"_made_up": True})


class _MadeUpModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        if self.__loader__.known(full):
            return importlib.import_module(full)
        value = placeholder(full)
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, folder, packages, given):
        self.folder = pathlib.Path(folder)
        self.packages = packages
        self.given = given

    def file(self, name):
        return self.folder.joinpath(*name.split(".")).with_suffix(".py")

    def known(self, name):
        return name in self.given or self.file(name).is_file()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.packages:
            return None
        file = self.file(name)
        if file.is_file():
            loader = importlib.machinery.SourceFileLoader(name, str(file))
            return importlib.machinery.ModuleSpec(name, loader, origin=str(file))
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _MadeUpModule(spec.name)

    def exec_module(self, module):
        for name, value in self.given.get(module.__name__, {}).items():
            setattr(module, name, value)


def install(folder, packages, given):
    """`given`: for modules that are made up, the names that matter."""
    if not pathlib.Path(folder).is_dir():
        sys.exit(f"{folder} is not there: run setup.sh first")
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _Finder(folder, packages, given))
