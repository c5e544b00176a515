"""`python -m softmux.cli` is `softmux`."""

from softmux.cli import app

app()
