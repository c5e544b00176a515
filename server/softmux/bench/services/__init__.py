"""Servers and engines that are asked too much, for too long, by several, or are broken."""
