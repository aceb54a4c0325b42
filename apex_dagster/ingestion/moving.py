"""Moving a dropped file and its sidecar, without losing what is overwritten meanwhile."""

from __future__ import annotations

import glob
import shutil
from pathlib import Path

from apex_dagster.ingestion.sidecar import body_hash as hash_of
from apex_dagster.ingestion.sidecar import has_sidecar, sidecar_of
from apex_dagster.saga.failpoints import reach


def move(path: Path, wanted: Path, body_hash: str) -> Path | None:
    """Move a file to `wanted` or the next free name there, and its sidecar with it.

    Returns where it is now; None if it was overwritten meanwhile, and has its own turn, or if
    another process moves it at this moment.
    """
    # Two files cannot be moved at once, and one without its sidecar would be taken for another
    # submission. So the sidecar is copied, the file renamed, and the copy replaced by the original:
    # whoever dies in between leaves the file with its sidecar beside it, here or there. Left over
    # may be a copy there, under a name that no file takes any more, or the original here: a sidecar
    # without a file, which waits for the next file of that name as one that was put there first.
    # It is not cleared away, as its sender may have put it there for that very file.
    destination = free_path(wanted)
    destination.parent.mkdir(parents=True, exist_ok=True)
    has_copy = _copy_sidecar(path, destination)
    reach("sidecar_copied")
    try:
        path.rename(destination)
    except FileNotFoundError:
        if not destination.exists():  # else it was moved to this very place, and the copy is in use
            sidecar_of(destination).unlink(missing_ok=True)
        return None
    reach("file_moved")
    if hash_of(destination) != body_hash:
        _give_back(destination, path)
        return None
    if has_copy:
        _remove_sidecar(path, destination)
    return destination


def free_path(path: Path) -> Path:
    """`path`, or the next name beside it that is not taken: report.pdf, report~1.pdf, ...

    A name is taken as well where a sidecar lies that would become this file's.
    """
    candidate, number = path, 0
    while candidate.exists() or sidecar_of(candidate).exists():
        number += 1
        candidate = path.with_name(f"{path.stem}~{number}{path.suffix}")
    return candidate


def numbered(path: Path) -> list[Path]:
    """The files beside `path` that `free_path` may have named after it."""
    pattern = f"{glob.escape(path.stem)}~*{glob.escape(path.suffix)}"
    return sorted(path.parent.glob(pattern)) if path.parent.is_dir() else []


def _copy_sidecar(path: Path, destination: Path) -> bool:
    """Whether there was one."""
    try:
        if has_sidecar(path):
            shutil.copyfile(sidecar_of(path), sidecar_of(destination))
            return True
    except FileNotFoundError:
        pass  # taken away at this moment: the hash will tell
    return False


def _remove_sidecar(path: Path, destination: Path) -> None:
    """Take away the original of a sidecar whose copy has arrived; not one put there meanwhile."""
    original, copy = sidecar_of(path), sidecar_of(destination)
    copied = copy.read_bytes()
    try:
        original.replace(copy)
    except FileNotFoundError:
        return
    if copy.read_bytes() != copied:
        copy.replace(original)
        copy.write_bytes(copied)


def _give_back(moved: Path, path: Path) -> None:
    """It was overwritten between the look and the move: the newer content has its own turn."""
    if not path.exists():
        moved.rename(path)  # where its sidecar is still
        sidecar_of(moved).unlink(missing_ok=True)
        return
    back = free_path(path)
    if has_sidecar(moved):
        sidecar_of(moved).rename(sidecar_of(back))
    moved.rename(back)
