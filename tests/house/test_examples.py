"""What pages show is run, as it is written there: see `support.examples`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.examples import examples, run
from support.served import Served, upload_parts

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("cli.md", "client.md")
"""The pages whose examples are run."""


@pytest.fixture(scope="module")
def published(server: Served, adapters: dict[str, Path]) -> Iterator[Served]:
    """The tasks that pages speak of, as tiny ones."""
    folder = adapters["prompt-tuning"]
    labels = b'{"labels": ["sports", "weather"]}'
    tasks = {"sentiment": upload_parts(folder), "topic": upload_parts(folder, **{"softmux.json": labels})}
    for task, parts in tasks.items():
        response = server.http.put(f"/v1/adapters/{task}", files=parts)
        assert response.status_code == 201, response.text
    yield server
    for task in tasks:
        server.http.delete(f"/v1/adapters/{task}")


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page: str, published: Served, adapters: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(adapters["prefix-tuning"], tmp_path / "my-task")
    assert run(DOCS / page, tmp_path, published.url) == sum(example.runs for example in examples(DOCS / page)) > 0


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", "assert x == 2"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "the page says"),
        ("```bash\nfalse\ntrue\n```\n", "exit code 1"),
        ("```bash\necho $SOFTMUX_URL http://127.0.0.1:8000 | tr ' ' '\\n' | uniq | wc -l; cat a\n```\n", "exit code 1"),
    ],
)
def test_an_example_that_fails_is_told_with_its_line(written: str, told: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n" + written)
    with pytest.raises(AssertionError, match=r"page.md:\d+") as failed:
        run(page, tmp_path, "http://127.0.0.1:9")
    assert told in str(failed.value)


def test_files_are_saved_blocks_left_out_and_output_held_against_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '<!-- save: a.jsonl -->\n```json\n{"at": "127.0.0.1:8000"}\n```\n\n<!-- not run: it ends all -->\n'
        "```bash\nexit 1\n```\n\n```bash\ncat a.jsonl\necho $SOFTMUX_URL\n```\n\n```text\n"
        '{"at": "127.0.0.1:9"}\n…:9\n```\n\n```json\n{}\n```\n'
    )
    assert run(page, tmp_path, "http://127.0.0.1:9") == 1
    assert [example.skipped for example in examples(page)] == [None, "it ends all", None]
