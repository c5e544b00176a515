"""Replicas behind Ray Serve, and the same routing simulated."""
