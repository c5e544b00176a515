"""`make help` tells of every target, and the pins are where the Makefile and the image look for them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROMISED = {"serve", "test", "lint", "bench", "nightly", "setup", "help"}


def test_help_lists_every_target() -> None:
    said = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+) ", said, re.MULTILINE))
    phony = {name for line in re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE) for name in line.split()}
    assert listed == phony
    assert listed >= PROMISED


def test_an_old_python_is_refused_in_words(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac\n', encoding="utf-8")
    old.chmod(0o755)
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", "setup", f"PYTHON={old}", f"VENV={venv}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Python 3.9.2, and softmux needs 3.11 or newer" in done.stderr
    assert not venv.exists()


def _pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_pins_are_exact_and_torch_stands_apart() -> None:
    pins = _pins()
    assert all(re.fullmatch(r"==[0-9][^*+,]*", str(pin.specifier)) for pin in pins.values())
    assert "torch" not in pins
    assert re.search(r"^torch==\d+\.\d+\.\d+$", (ROOT / "constraints-torch.txt").read_text("utf-8"), re.MULTILINE)


def _direct() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


@pytest.mark.parametrize("requirement", [r for r in _direct() if r.name != "torch"], ids=lambda r: r.name)
def test_every_dependency_is_pinned_to_a_version_it_allows(requirement: Requirement) -> None:
    pin = _pins()[canonicalize_name(requirement.name)]
    version = str(pin.specifier).removeprefix("==")
    assert requirement.specifier.contains(version, prereleases=True)
