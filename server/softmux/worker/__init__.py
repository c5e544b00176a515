"""The engine's own process: its loop, its socket, its client and its supervisor."""
