"""What pages show is run, as it is written there: see `support.examples`."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.examples import REASONS, examples, run
from support.served import Served, upload_parts

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "deploy" / "README.md", *(ROOT / "docs").rglob("*.md")])
WITH_KEYS = {"tutorials/production.md", "how-to/limits.md", "how-to/share-a-task.md"}
"""Pages below docs/ whose commands make keys, or need an administrator's: a server of their own."""
ADMIN_KEY = "an-admin-key-for-the-pages"
AT_MOST = {
    "it starts a server": 9, "it takes minutes": 11, "it needs a cluster": 6, "it needs GPUs": 4, "it needs Docker": 2,
    "it needs the network": 2, "it is another program's": 2,
}  # fmt: skip
"""So few blocks of all pages may be left out, by reason. A new page is run."""


def _name(page: Path) -> str:
    docs = ROOT / "docs"
    return str(page.relative_to(docs if docs in page.parents else ROOT))


PLAIN = [page for page in PAGES if _name(page) not in WITH_KEYS and any(e.runs for e in examples(page))]


def _publish(server: Served, adapters: dict[str, Path]) -> list[str]:
    """The tasks that pages speak of, as tiny ones."""
    folder = adapters["prompt-tuning"]
    labels = b'{"labels": ["sports", "weather"]}'
    tasks = {"sentiment": upload_parts(folder), "topic": upload_parts(folder, **{"softmux.json": labels})}
    for task, parts in tasks.items():
        response = server.http.put(f"/v1/adapters/{task}", files=parts)
        assert response.status_code == 201, response.text
    return list(tasks)


@pytest.fixture(scope="module")
def published(server: Served, adapters: dict[str, Path]) -> Iterator[Served]:
    tasks = _publish(server, adapters)
    yield server
    for task in tasks:
        server.http.delete(f"/v1/adapters/{task}")


@pytest.fixture(scope="module")
def administered(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server that needs keys, with the tenant `acme`."""
    data = tmp_path_factory.mktemp("administered") / "data"
    with Served(base[1], data, env={"SOFTMUX_ADMIN_KEY": ADMIN_KEY}, key=ADMIN_KEY) as running:
        _publish(running, adapters)
        running.http.post("/v1/tenants", json={"name": "acme"}).raise_for_status()
        yield running


@pytest.fixture
def folder(tmp_path: Path, adapters: dict[str, Path]) -> Path:
    """Where a page's commands run: what PEFT wrote is there by the names that pages give it."""
    for name in ("my-task", "out"):
        shutil.copytree(adapters["prefix-tuning"], tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("page", PLAIN, ids=_name)
def test_the_examples_of_a_page_run(page: Path, published: Served, folder: Path) -> None:
    assert (
        run(page, folder, published.url, SOFTMUX_DATA=str(published.data))
        == sum(example.runs for example in examples(page))
        > 0
    )
    published.http.delete("/v1/adapters/my-task")


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(WITH_KEYS))
def test_the_examples_of_a_page_with_keys_run(name: str, administered: Served, folder: Path) -> None:
    page = ROOT / "docs" / name
    count = run(page, folder, administered.url, SOFTMUX_KEY=ADMIN_KEY, SOFTMUX_DATA=str(administered.data))
    assert count == sum(example.runs for example in examples(page)) > 0


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_of_a_page_is_written_well(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^[ \t]+```|^~~~", text, re.MULTILINE), "a block that stands in a list would not be run"
    fences, found = len(re.findall(r"^```", text, re.MULTILINE)), examples(page)
    assert fences == 2 * sum(1 + (example.printed is not None) for example in found), "a block that is not seen"
    faults = {f"{page.name}:{example.line}": fault for example in found if (fault := example.fault())}
    assert not faults
    for example in found:
        bare = example.language in ("python", "bash", "sh") and not example.save
        assert example.runs or example.skipped or not bare


def test_few_blocks_are_left_out() -> None:
    left = Counter(example.skipped for page in PAGES for example in examples(page) if example.skipped)
    assert set(AT_MOST) == REASONS
    assert all(left[reason] <= most for reason, most in AT_MOST.items()), left


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", "assert x == 2"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "the page says"),
        ("```bash\nfalse\ntrue\n```\n", "exit code 1"),
        ("```bash\necho $SOFTMUX_URL http://127.0.0.1:8000 | tr ' ' '\\n' | uniq | wc -l; cat a\n```\n", "exit code 1"),
        ('```bash\necho \'{"a": 1}\'\n```\n\n<!-- the answer -->\n```json\n{"b": 1}\n```\n', "has no ['b']"),
        ('```bash\necho \'{"a": 1}\'\n```\n\n<!-- the answer -->\n```json\n{"a": "1"}\n```\n', "where a. is 1"),
    ],
)
def test_an_example_that_fails_is_told_with_its_line(written: str, told: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n" + written)
    with pytest.raises(AssertionError, match=r"page.md:\d+") as failed:
        run(page, tmp_path, "http://127.0.0.1:9")
    assert told in str(failed.value)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("```python\nx = (\n```\n", "never closed"),
        ("```bash\nif true\n```\n", "syntax error"),
        ("```json\n{\n```\n", "Expecting"),
        ("```jsonl\n{}\n{\n```\n", "Expecting"),
        ("```toml\na\n```\n", "Expected"),
        ("```yaml\na: [\n```\n", "expected"),
        ("```\na\n```\n", "no language"),
        ("<!-- not run: it is long -->\n```bash\ntrue\n```\n", "no reason"),
    ],
)
def test_what_is_not_run_is_read_all_the_same(written: str, told: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(written)
    [example] = examples(page)
    assert told in str(example.fault())


def test_files_are_saved_blocks_left_out_and_output_held_against_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '<!-- save: a.jsonl -->\n```json\n{"at": "127.0.0.1:8000"}\n```\n\n<!-- not run: it takes minutes -->\n'
        "```bash\nexit 1\n```\n\n```bash\ncat a.jsonl\necho $SOFTMUX_URL\n```\n\n```text\n"
        '{"at": "127.0.0.1:9"}\n…:9\n```\n\n```json\n{}\n```\n'
    )
    assert run(page, tmp_path, "http://127.0.0.1:9") == 1
    assert [example.skipped for example in examples(page)] == [None, "it takes minutes", None, None]
    assert [example.fault() for example in examples(page)] == [None] * 4
