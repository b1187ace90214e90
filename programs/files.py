"""Files: read whole and bounded, written atomically; every failure is one sentence."""

import contextlib
import os
import stat
from pathlib import Path

from ..signatures.errors import ArtifactError


def read_bounded(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file that has at most `most`.

    Raises:
        ArtifactError: If there is no such file, it can't be read, is a directory or a device, or is larger.
    """
    try:
        # Without waiting: a pipe that nobody writes to would otherwise hang here for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                raise ArtifactError(f"{path} is a directory; name the file that `compile -o` wrote.")
            # A device or a pipe has no size and may have no end.
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError(f"{path} is a device or a pipe: `an artifact is a file`; name the file itself.")
            if status.st_size > most:
                raise ArtifactError(f"{path} has {status.st_size} bytes: `an artifact has at most {most}`.")
            with open(handle, "rb", closefd=False) as stream:
                return stream.read(most) or b""
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} can't be read ({_reason(error)}); name the file that `compile -o` wrote."
        ) from error


def check_writable(path: Path) -> None:
    """Raise ArtifactError unless a file can be made at `path`; asked before money is spent."""
    try:
        parent, target = path.parent, _status(path)
        if target is not None and stat.S_ISDIR(target.st_mode):
            raise ArtifactError(
                f"{path} is a directory: `the artifact is one file`; name a file in it, like {path}/program.json."
            )
        if target is not None and not stat.S_ISREG(target.st_mode):
            raise ArtifactError(f"{path} is a device or a pipe: `the artifact is one file`; name a file.")
        if not parent.is_dir():
            what = "isn't a directory" if parent.exists() else "doesn't exist; make it first"
            raise ArtifactError(f"{path} can't be written: the directory {parent} {what}.")
        if not os.access(parent, os.W_OK) or (target is not None and not os.access(path, os.W_OK)):
            raise ArtifactError(f"{path} can't be written: permission denied; name another path.")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} can't be written ({_reason(error)}); name another path.") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file by way of a sibling, so that a crash leaves the old file or the new one, never half of one.

    Raises:
        ArtifactError: If it can't be written; what was at `path` is still there.
    """
    import secrets

    check_writable(path)
    # Through a link to what it names, as a plain write would.
    target = Path(os.path.realpath(path))
    sibling = target.parent / f".{secrets.token_hex(8)}.vitrify"
    try:
        # The mode is cut by the umask, as that of any new file.
        handle = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            sibling.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                sibling.unlink()
            raise
    except OSError as error:
        raise ArtifactError(f"{path} can't be written ({_reason(error)}); name another path with -o.") from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
