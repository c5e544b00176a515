"""Which folders are published at start: what can't be looked into keeps none of the others out."""

from __future__ import annotations

from pathlib import Path

import pytest

from softmux.api.admission import _adapter_folders
from softmux.formats.folder import CONFIG_FILE


def test_a_folder_that_may_not_be_looked_into_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "lost+found", "z", "no-adapter"):
        (tmp_path / name).mkdir()
    for name in ("a", "z"):
        (tmp_path / name / CONFIG_FILE).write_text("{}", encoding="utf-8")
    is_file = Path.is_file

    def refused(path: Path) -> bool:  # as for one who is not root
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert [path.name for path in _adapter_folders(tmp_path)] == ["a", "z"]
    assert _adapter_folders(tmp_path / "gone") == []
