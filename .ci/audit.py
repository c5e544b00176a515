"""Reads `pip install --dry-run --report -` of the pinned packages: fails where one was withdrawn, or has no hash.

This is what a package index alone can tell: that each pinned release is still there, has a hash, and was not yanked by
its authors, as releases with known holes often are. It knows no advisories.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def findings(report: dict[str, Any]) -> list[str]:
    """What is wrong with the packages of a report."""
    found = []
    if any("is_yanked" not in package for package in report["install"]):
        found.append("this pip does not tell which releases were withdrawn: `pip install 'pip>=24'`")
    for package in report["install"]:
        name = f"{package['metadata']['name']} {package['metadata']['version']}"
        if package.get("is_yanked"):
            found.append(f"{name} was withdrawn by its authors: take another release, then `make constraints`")
        if "sha256" not in package["download_info"].get("archive_info", {}).get("hashes", {}):
            found.append(f"{name} has no SHA-256 in the index: what is installed can't be told from something else")
    return found


def main() -> int:
    report = json.load(sys.stdin)
    found = findings(report)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.stdout.write(f"{len(report['install'])} packages looked up, {len(found)} findings\n")
    return 1 if found or not report["install"] else 0


if __name__ == "__main__":
    sys.exit(main())
