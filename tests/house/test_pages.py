"""The pages hang together: links lead somewhere, the changelog knows the version, no registry is named."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from softmux import __version__
from softmux.formats.methods import METHODS
from softmux.formats.softmux_json import SoftmuxJson
from softmux.tuning.recipes.recipe import Recipe

ROOT = Path(__file__).parents[2]
FOLDERS = ("*.md", "docs/**/*.md", "deploy/**/*.md", "adapters/*/README.md")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(folder))
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} links to {target}, and no heading is called so"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_code_marks_exist(page: Path) -> None:
    """A path of this repository in backticks is a promise, too."""
    named = re.findall(r"`((?:server|docs|deploy|tests|adapters|\.ci)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    for name in named:
        assert (ROOT / name).exists(), f"{page.name} names {name}, which is not there"


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__


def test_the_pages_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z-]+)[`\s]", "\n".join(_code(page.read_text(encoding="utf-8")))):
            assert target in targets, f"{page.name} says make {target}"


def _code(text: str) -> list[str]:
    return re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text)


def test_no_package_registry_is_named() -> None:
    """Where packages come from is the user's pip configuration to say."""
    hosts = r"pypi\.org|pythonhosted\.org|download\.pytorch\.org"
    found = subprocess.run(
        ["git", "grep", "-n", "-I", "-E", hosts, "--", ".", ":!tests/house/test_pages.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1, found.stdout + found.stderr


@pytest.mark.parametrize("page", ["docs/adapters.md", "docs/tutorials/tune-a-task.md"])
def test_the_recipe_shown_is_a_recipe(page: str) -> None:
    shown = re.search(r"```toml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    assert Recipe.model_validate(tomllib.loads(shown[1])).task == "tickets"


def test_every_method_and_every_field_of_softmux_json_is_told_of() -> None:
    page = (ROOT / "docs/adapters.md").read_text(encoding="utf-8")
    methods = re.findall(r"^\| `([A-Z_]+)` \|.*\| `(\w+)` \|$", page, re.MULTILINE)
    assert dict(methods) == {name: row.method for name, row in METHODS.items()}
    section = page.partition("## `softmux.json`")[2].partition("With `")[0]
    fields = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in section.splitlines() if line[:3] == "| `"))
    assert set(fields) == set(SoftmuxJson.model_fields)
