from support.served_fixtures import adapters, base, server

__all__ = ["adapters", "base", "server"]
