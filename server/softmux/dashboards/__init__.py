"""Grafana's dashboards, made of the declared metrics: `python -m softmux.dashboards deploy/grafana/dashboards`.

It takes grafana-foundation-sdk (the extra `dev`); what it makes is committed, and a test holds both together.
"""
