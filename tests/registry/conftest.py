from support.registries import registry, runner

__all__ = ["registry", "runner"]
