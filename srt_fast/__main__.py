"""`srt-fast`, and `python -m srt_fast`."""

from __future__ import annotations

import sys


def main() -> int:
    """The command line. Returns the exit code."""
    try:
        from srt_fast.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("srt_"):
            raise
        print(
            f"error: the trainer needs the package {error.name!r}, which is not installed: "
            "pip install 'srt-fast[train]'",
            file=sys.stderr,
        )
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
