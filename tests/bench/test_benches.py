"""The table of benches: each is there, answers `--help` under its own name, and stands in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from softmux.bench.__main__ import main
from softmux.bench.benches import BENCHES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_answers_by_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.startswith(f"usage: softmux bench {name} ")
    (row,) = [
        line for line in (DOCS / "cli.md").read_text(encoding="utf-8").splitlines() if "| `softmux bench` |" in line
    ]
    assert f"`{name}`" in row


def test_no_page_names_a_module_that_does_nothing_when_it_is_run() -> None:
    root = DOCS.parent
    pages = [*DOCS.rglob("*.md"), *root.glob("*.md"), root / "deploy" / "README.md", root / "Makefile"]
    words = " ".join(" ".join(page.read_text(encoding="utf-8").split()) for page in pages)
    modules = set(re.findall(r"python3? -m (softmux[.\w]*)", words))
    for module in modules:
        path = root / "server" / module.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert '__name__ == "__main__"' in path.read_text(encoding="utf-8"), module


def test_help_lists_them_all_and_a_wrong_name_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said and bench.about in said for name, bench in BENCHES.items())
    assert main(["speed"]) == 2
    assert capsys.readouterr().err.startswith("There is no bench speed.")
