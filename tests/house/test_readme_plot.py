"""The README's plot is drawn from figures that stand in docs/performance.md, and is the one that is committed."""

from __future__ import annotations

from pathlib import Path

from softmux.bench.bars import Figures, main

DOCS = Path(__file__).parents[2] / "docs"
SOURCE, IMAGE = DOCS / "figures" / "throughput.json", DOCS / "images" / "throughput.svg"
FIGURES = Figures.model_validate_json(SOURCE.read_text(encoding="utf-8"))


def test_what_is_committed_is_what_is_drawn(tmp_path: Path) -> None:
    main(str(SOURCE), str(tmp_path / "plot.svg"))
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    said = "run: python -m softmux.bench.bars docs/figures/throughput.json docs/images/throughput.svg"
    assert IMAGE.read_text(encoding="utf-8") == drawn, said


def test_every_figure_stands_where_it_is_said_to_be_from() -> None:
    for panel in FIGURES.panels:
        page, _, rest = panel.source.partition(": ")
        section, _, words = rest.partition(", “")
        text = (DOCS.parent / page).read_text(encoding="utf-8")
        found = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        table = found.partition(words.rstrip("”"))[2].partition("\n\n")[2 if section == "On a CPU" else 0]
        cells = {cell.strip() for line in table.splitlines()[:12] for cell in line.split("|")}
        for bar in panel.bars:
            assert bar.written in cells, f"{bar.name}: {bar.written} does not stand in {panel.source}"
            assert bar.value == float(bar.written.removesuffix("k")) * (1000 if bar.written.endswith("k") else 1)
