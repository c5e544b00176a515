from __future__ import annotations

from collections.abc import Callable

import pytest
from formats_fixtures import make_peft, read_files


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, bytes]]:
    """Files that PEFT's `save_pretrained` writes for (model, config), made once."""
    made: dict[tuple[str, str], dict[str, bytes]] = {}

    def get(model: str, config: str) -> dict[str, bytes]:
        if (model, config) not in made:
            folder = tmp_path_factory.mktemp("peft")
            make_peft(model, config)[0].save_pretrained(folder)
            made[model, config] = read_files(folder)
        return dict(made[model, config])

    return get
