"""The list of a checkpoint's files with their sizes and hashes: no changed byte loads unseen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from srt_fast.distributed.world import World
from srt_fast.errors import CheckpointError
from srt_fast.files import sync_to_disk

FORMAT = 3
MANIFEST = "manifest.json"


class FileDigest(NamedTuple):
    """A file of a checkpoint: its size in bytes and its SHA-256."""

    size: int
    sha256: str


def write_manifest(folder: Path, step: int, world: World) -> None:
    """Sync all files of a checkpoint to disk, and write its manifest. All ranks call it.

    Each rank reads its share of the files.
    """
    files = _list_files(folder, world)
    with world.agreement():
        share = _share(files, world)
        for name in share:
            sync_to_disk(folder / name)
        digests = {name: _digest(folder / name) for name in share}
    all_digests: dict[str, FileDigest] = {}
    for part in world.gather(digests):
        all_digests |= part
    with world.agreement():
        if world.is_main:
            body = {
                "format": FORMAT,
                "step": step,
                "world_size": world.size,
                "files": {name: list(all_digests[name]) for name in sorted(files)},
            }
            manifest = body | {"sha256": _body_digest(body)}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            for path in [folder / MANIFEST, *filter(Path.is_dir, folder.rglob("*")), folder]:
                sync_to_disk(path)


def verify_checkpoint(folder: Path, world: World) -> None:
    """Read all files of a checkpoint, and compare them with its manifest. All ranks call it.

    Each rank reads its share of the files. Raises CheckpointError on all ranks. Its message names
    each file that is missing, truncated, changed or not in the manifest.
    """
    with world.agreement():
        expected = _read_manifest(folder) if world.is_main else {}
    expected = world.broadcast(expected)
    sizes = _list_files(folder, world)
    present = {name: size for name, size in sizes.items() if name in expected}
    with world.agreement():
        problems = {
            name: _problem(folder / name, expected[name]) for name in _share(present, world)
        }
    all_problems: dict[str, str] = {}
    for part in world.gather(problems):
        all_problems |= {name: problem for name, problem in part.items() if problem}
    all_problems |= dict.fromkeys(expected.keys() - sizes, "expected it, got no such file")
    all_problems |= dict.fromkeys(sizes.keys() - expected, "not in the manifest")
    if all_problems:
        texts = [f"{name}: {problem}" for name, problem in sorted(all_problems.items())]
        raise CheckpointError(f"{folder}: damaged: {'; '.join(texts)}")


def _list_files(folder: Path, world: World) -> dict[str, int]:
    """The size of each file of a checkpoint but its manifest, as rank 0 sees them."""
    files: dict[str, int] = {}
    with world.agreement():
        if world.is_main:
            paths = [path for path in folder.rglob("*") if not path.is_dir()]
            files = {path.relative_to(folder).as_posix(): path.lstat().st_size for path in paths}
            files.pop(MANIFEST, None)
    return world.broadcast(files)


def _share(sizes: dict[str, int], world: World) -> list[str]:
    """The files of this rank: a share of the bytes. The largest files are dealt first."""
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    totals = [0] * world.size
    share = []
    for name in names:
        rank = totals.index(min(totals))
        totals[rank] += sizes[name]
        if rank == world.rank:
            share.append(name)
    return share


def _digest(path: Path) -> FileDigest:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(file.tell(), sha256)


def _problem(path: Path, expected: FileDigest) -> str:
    """What is wrong with a file. Empty: nothing."""
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"expected {expected.size} bytes, got {size}"
        sha256 = _digest(path).sha256
    except OSError as error:  # a disk that fails
        return f"cannot be read: {error.strerror}"
    if sha256 != expected.sha256:
        return f"expected SHA-256 {expected.sha256[:12]}, got {sha256[:12]}"
    return ""


def _read_manifest(folder: Path) -> dict[str, FileDigest]:
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint of format {FORMAT}, got one without {MANIFEST}"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        sha256 = manifest.pop("sha256")
        is_intact = sha256 == _body_digest(manifest)
    except (ValueError, KeyError, AttributeError, TypeError):
        is_intact = False
        manifest = {}
    if not is_intact:
        raise CheckpointError(f"{folder}: damaged: {MANIFEST}: its own SHA-256 differs")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{folder}: expected a checkpoint of format {FORMAT}, got {manifest['format']}"
        )
    return {name: FileDigest(*values) for name, values in manifest["files"].items()}


def _body_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
