from support.registries import registry, runner
from support.served_fixtures import adapters, base, server

__all__ = ["adapters", "base", "registry", "runner", "server"]
