"""Importing the user's objects by name: "program.py:Desk" and "package.module:Name"."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal

from ..signatures.errors import MetricError, ProgramError, RequestError, nearest

Kind = Literal["program", "metric", "strategy", "redaction"]


def load_object(spec: str, *, kind: Kind = "program", base_dir: str | os.PathLike[str] | None = None) -> object:
    """Return the object that "file.py:Name" or "package.module:Name" names.

    A file is imported once for each real path, under a name derived from it, and stays in `sys.modules`: `inspect` and
    `pickle` work on what it defines, and a program and a metric of one file share one module. Its folder is on
    `sys.path` while it is imported; for a module that's the working directory.

    Args:
        spec: What to load.
        kind: What it is for; says whether MetricError or ProgramError is raised.
        base_dir: Where relative paths start; the working directory unless given.
    """
    error = MetricError if kind == "metric" else ProgramError
    target, colon, name = spec.rpartition(":")
    if not colon or not target or not name or target.endswith(":"):
        raise error(f"The {kind} `{spec}` breaks `file.py:Name or package.module:Name`; write it so.")
    if target.endswith(".py") or "/" in target or os.sep in target:
        module = _load_file(target, kind, error, base_dir)
    else:
        module = _load_module(target, kind, error)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [item for item in vars(found) if not item.startswith("_")] if hasattr(found, "__dict__") else []
            raise error(
                f"The {kind} `{spec}` breaks `{target} defines {name}`: it has no `{part}`; {nearest(part, known)}"
            )
        found = getattr(found, part)
    return found


def _load_file(
    target: str, kind: Kind, error: type[RequestError], base_dir: str | os.PathLike[str] | None
) -> ModuleType:
    written = Path(base_dir or ".") / Path(target).expanduser()
    if not written.is_file():
        folder = written.parent
        if not folder.is_dir():
            raise error(f"The {kind}'s file `{target}` breaks `the file exists`: there is no folder `{folder}`.")
        known = sorted(item.name for item in folder.glob("*.py"))
        raise error(f"The {kind}'s file `{target}` breaks `the file exists`; {nearest(written.name, known)}")
    path = written.resolve()
    known_module = _imported(path)
    if known_module is not None:
        return known_module
    stem = re.sub(r"\W", "_", path.stem)
    # Derived from the whole path: two files called program.py are two modules.
    name = f"_vitrify_{stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"The {kind}'s file `{target}` breaks `the file is a Python file ending in .py`; rename it.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _on_path(path.parent, Path.cwd()):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as failure:  # whatever the user's file raises
            sys.modules.pop(name, None)
            raise error(_failed(kind, target, failure)) from failure
        except BaseException:
            sys.modules.pop(name, None)
            raise
    return module


def _imported(path: Path) -> ModuleType | None:
    """Return the module that came from this file, under whatever name it was imported, the running script included."""
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType):
            continue
        file = vars(module).get("__file__")  # not getattr: some modules import half of a library to answer it
        if isinstance(file, str) and Path(file).name == path.name:
            # A module that is still being imported lacks names that it will have.
            loading = getattr(vars(module).get("__spec__"), "_initializing", False)
            if not loading and Path(file).resolve() == path:
                return module
    return None


def _load_module(target: str, kind: Kind, error: type[RequestError]) -> ModuleType:
    importlib.invalidate_caches()
    with _on_path(Path.cwd()):
        try:
            found = None if target in sys.modules else importlib.util.find_spec(target)
            # "program:routed" beside "program.py:Desk": one file, one module.
            origin = found.origin if found is not None and found.has_location else None
            known = None if origin is None else _imported(Path(origin).resolve())
            return known or importlib.import_module(target)
        except ModuleNotFoundError as failure:
            if failure.name is not None and (target == failure.name or target.startswith(f"{failure.name}.")):
                hint = f"; did you mean the file `{target}.py`?" if Path(f"{target}.py").is_file() else ""
                raise error(
                    f"The {kind} breaks `module {target} can be imported`: there is no module `{failure.name}`{hint}"
                    f"{'' if hint else '; install it, or run from the folder that holds it'}."
                ) from None
            raise error(_failed(kind, target, failure)) from failure
        except (Exception, SystemExit) as failure:  # whatever the user's module raises
            raise error(_failed(kind, target, failure)) from failure


@contextlib.contextmanager
def _on_path(*folders: Path) -> Iterator[None]:
    entries = [str(folder) for folder in folders]
    sys.path[:0] = entries
    try:
        yield
    finally:
        for entry in entries:
            with contextlib.suppress(ValueError):  # the file may have changed sys.path itself
                sys.path.remove(entry)


def _failed(kind: Kind, target: str, failure: BaseException) -> str:
    what = f"{type(failure).__name__}: {(str(failure) or 'no message').splitlines()[0][:300]}"
    if isinstance(failure, SyntaxError) and failure.filename is not None:
        place = f"{Path(failure.filename).name}:{failure.lineno}"
        what = f"{type(failure).__name__}: {failure.msg}"
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(failure.__traceback__)
            if not frame.filename.startswith("<frozen") and frame.filename != __file__
        ]
        # The user's own line, rather than the one in a library that it called.
        libraries = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
        own = [frame for frame in frames if not frame.filename.startswith(libraries)]
        last = (own or frames)[-1] if frames else None
        place = f"{Path(last.filename).name}:{last.lineno}" if last is not None else target
    return f"The {kind}'s `{target}` breaks `it can be imported`: {place} raised {what}; mend it."
