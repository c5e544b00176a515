"""`python -m softmux.dashboards FOLDER` writes every dashboard into it, and removes what is no longer one."""

from __future__ import annotations

import sys
from pathlib import Path

from softmux.dashboards.boards import files


def main(folder: Path) -> None:
    made = files()
    for old in folder.glob("*.json"):
        if old.name not in made:
            old.unlink()
    for name, content in made.items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m softmux.dashboards FOLDER")
    main(Path(sys.argv[1]))
