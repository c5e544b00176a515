"""`make docs`: the pages as a site in build/site, checked.

The pages lie where their readers on a forge find them; here they are gathered into one folder, with the links between
them set anew, and given to zensical. The site is then read as a browser would: every link, anchor and file that
it names must be there, and none may be fetched from elsewhere, for a site that is read offline and tells nobody.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
OUTSIDE_DOCS = {
    "README.md": "index.md",
    "deploy/README.md": "deploy.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
}
"""Pages that lie elsewhere in the repository, and where the site has them."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
_STYLE_URL = re.compile(r"(?:url\(|@import\s+(?!url))[\"']?(?!data:|#|%23)([^\"')]+)")


def gathered() -> dict[str, str]:
    """Each file of the site's source, by its path in the repository: the path that it has among the pages."""
    docs = ROOT / "docs"
    kept = {".md", ".svg", ".png"}
    found = {str(p.relative_to(ROOT)): str(p.relative_to(docs)) for p in docs.rglob("*") if p.suffix in kept}
    return found | OUTSIDE_DOCS


def relinked(source: str, text: str, places: dict[str, str]) -> str:
    """The page `source` with links as they are among the pages. What the site doesn't have becomes its plain words."""

    def link(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return found[0]
        meant = os.path.normpath(Path(source).parent / path)
        if meant not in places:
            return words
        here = os.path.relpath(places[meant], Path(places[source]).parent)
        return f"{mark}[{words}]({here}{hash_}{anchor})"

    return _LINK.sub(link, text)


def gather() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    places = gathered()
    for source, place in places.items():
        target = PAGES / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            text = (ROOT / source).read_text(encoding="utf-8")
            target.write_text(relinked(source, text, places), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / source, target)


class Page(HTMLParser):
    """What a page of the site names: its anchors, its links, and what a browser fetches by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := of.get(name))}
        if tag == "a" and (target := of.get("href")):
            self.links.append(target)
        named = of.get(_FETCHED.get(tag, ""))
        if named and of.get("rel") not in ("canonical", "alternate", "prev", "next"):
            self.fetched.append(named)


def findings(site: Path) -> list[str]:
    """What is wrong with a built site: links to nothing, and what comes from elsewhere."""
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        found += [f"{where} fetches {url}" for url in page.fetched if urlsplit(url).netloc]
        for url in [*page.links, *page.fetched]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{where} leads to {url}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{where} leads to {url}, and nothing there is called so")
    for sheet in site.rglob("*.css"):
        urls = _STYLE_URL.findall(sheet.read_text(encoding="utf-8"))
        found += [f"{sheet.relative_to(site)} fetches {url}" for url in urls if urlsplit(url).netloc]
    return sorted(set(found))


def main() -> int:
    gather()
    shutil.rmtree(SITE, ignore_errors=True)
    zensical = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict"]
    built = subprocess.run(zensical, cwd=ROOT, check=False).returncode  # noqa: S603
    if built or not (SITE / "index.html").exists():
        return built or 1
    wrong = findings(SITE)
    pages = len(list(SITE.rglob("*.html")))
    sys.stdout.write("\n".join(["", *wrong, f"{pages} pages in {SITE.relative_to(ROOT)}, {len(wrong)} faults", ""]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
