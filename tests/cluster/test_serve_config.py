"""The Serve config file that ships, as Ray reads it, and the application that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'softmux[ray]'")

from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from softmux.cluster.app import ClusterSettings, build
from softmux.settings import Settings

CONFIG = Path(__file__).parents[2] / "deploy/ray/serve.yaml"
LEAST: dict[str, Any] = {"model": "m", "redis": "redis://r", "blobs": "s3://b"}


def test_ray_takes_the_file_and_softmux_its_arguments() -> None:
    read = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    (application,) = read.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    arguments = ClusterSettings(**application.args)
    assert arguments.server.keys() <= Settings.model_fields.keys()
    assert build(arguments) is not None


def test_replicas_are_as_many_as_was_said_or_as_the_load_asks_for() -> None:
    def of(**more: Any) -> Any:
        (replicas,) = build(ClusterSettings(**LEAST | more))._bound_deployment.init_args[:1]
        return replicas._bound_deployment._deployment_config

    assert of(replicas=3).num_replicas == 3
    scaled = of(replicas=2, max_replicas=5, target_ongoing_requests=32).autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (2, 5, 32)
    assert of(drain_seconds=60).graceful_shutdown_timeout_s > 60


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"polcy": "random"}, {"policy": "best"}, {"balance": 0.5}])
def test_arguments_that_do_not_fit_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ClusterSettings(**LEAST | wrong)
