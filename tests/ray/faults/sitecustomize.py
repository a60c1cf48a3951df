"""Ends a process at a chosen moment of writing a file: what every Python started with this folder on PYTHONPATH imports first.

RAYTRAFFIC_TEST_FAULT holds JSON: `file`, what the path written ends with; `moment`, "before" any byte of it, "between" (the bytes are
there, the file is not) or "after" it is there; `mark`, a file whose making decides which process is the one that ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def _end(fault: dict[str, str], path: str, moment: str) -> None:
    if fault["moment"] != moment or not path.endswith(fault["file"]):
        return
    try:
        os.close(os.open(fault["mark"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(files: ModuleType, fault: dict[str, str]) -> None:
    write_bytes, replace, s3 = files.Location.write_bytes, os.replace, files._s3

    def written(self: object, data: bytes) -> None:
        _end(fault, self.path, "before")  # type: ignore[attr-defined]
        write_bytes(self, data)
        _end(fault, self.path, "after")  # type: ignore[attr-defined]

    def replaced(source: str, target: str) -> None:
        _end(fault, str(target), "between")
        replace(source, target)

    def bucket() -> object:
        filesystem = s3()
        pipe = type(filesystem).pipe_file

        def piped(path: str, data: bytes, *rest: object) -> None:
            _end(fault, path, "between")
            pipe(filesystem, path, data, *rest)

        filesystem.pipe_file = piped
        return filesystem

    files.Location.write_bytes = written
    files.os.replace = replaced
    files._s3 = bucket


class _Finder(MetaPathFinder):
    """Arms raytraffic.files when it is imported, not before: most processes never need it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "raytraffic.files":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            _arm(module, json.loads(os.environ["RAYTRAFFIC_TEST_FAULT"]))

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


if os.environ.get("RAYTRAFFIC_TEST_FAULT"):
    sys.meta_path.insert(0, _Finder())
