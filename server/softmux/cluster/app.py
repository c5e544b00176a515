"""The Serve application: `serve run softmux.cluster.app:build model=… redis=…`, or a Serve config file."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.deployment import Application

from softmux.cluster.ingress import Ingress
from softmux.cluster.replica import Replica
from softmux.cluster.router import AdapterRouter


class ClusterSettings(BaseModel):
    """What `build` takes. What a single server has as settings goes into `server`, by the same names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="The base model: a folder that every machine has, or a hub id.")
    redis: str = Field(description="redis://… that all replicas share.")
    blobs: str = Field(description="Blob store that all replicas share: s3://…, or file://… on a shared file system.")
    server: dict[str, str] = Field(default_factory=dict, description="Settings of every replica's `softmux serve`.")
    replicas: int = Field(default=1, ge=1, description="Replicas; the least where `max_replicas` is more.")
    max_replicas: int | None = Field(
        default=None, ge=1, description="With it, Serve adds and removes replicas by load."
    )
    target_ongoing_requests: int = Field(default=64, ge=1, description="Requests under way for each replica, for that.")
    max_ongoing_requests: int = Field(default=1024, ge=1, description="Beyond it, a replica gets no more.")
    queue_seconds: float = Field(
        default=30, gt=0, description="How long a request may wait for a replica that is up and has room."
    )
    gpus: float = Field(default=0, ge=0, description="GPUs of a replica.")
    cpus: float = Field(default=1, ge=0, description="CPU cores that Ray sets aside for a replica.")
    ingresses: int = Field(
        default=1, ge=1, description="Processes that route. Each has its own belief of what is warm."
    )
    warm_adapters: int = Field(default=1024, ge=1, description="Adapters that a replica keeps in memory, about.")
    balance: float = Field(default=1.25, ge=1, description="How far above the mean a replica's load may be.")
    free: int = Field(default=8, ge=0, description="Requests that a replica may have whatever the mean is.")
    policy: str = Field(
        default="warm_first", pattern="^(warm_first|least_loaded|random)$", description="For comparison."
    )
    start_seconds: float = Field(default=1800, gt=0, description="How long a replica may take to be ready.")
    drain_seconds: float = Field(default=300, ge=0, description="How long a replica that leaves may take to finish.")
    max_body_bytes: int = Field(default=256 << 20, ge=1024, description="One request at most, uploads too.")


def build(arguments: ClusterSettings) -> Application:
    """The application, for Serve's builder protocol: `arguments` come typed from the command line or the file."""
    router: dict[str, Any] = {"policy": arguments.policy}
    if arguments.policy == "warm_first":
        router |= {"balance": arguments.balance, "free": arguments.free, "warm_keys": arguments.warm_adapters}
    scale: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.max_replicas is not None:
        scale = {
            "autoscaling_config": {
                "min_replicas": arguments.replicas,
                "max_replicas": arguments.max_replicas,
                "target_ongoing_requests": arguments.target_ongoing_requests,
            }
        }
    replicas = serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=arguments.max_ongoing_requests,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        request_router_config=RequestRouterConfig(request_router_class=AdapterRouter, request_router_kwargs=router),
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=arguments.drain_seconds + 10,
        health_check_period_s=5,
        health_check_timeout_s=30,
        **scale,
    )
    shared = {"model": arguments.model, "redis": arguments.redis, "blobs": arguments.blobs}
    shared |= {"drain_seconds": f"{arguments.drain_seconds:g}"}
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        num_replicas=arguments.ingresses,
        max_ongoing_requests=arguments.max_ongoing_requests * max(arguments.replicas, arguments.max_replicas or 1),
        ray_actor_options={"num_cpus": 0.5},
        graceful_shutdown_timeout_s=arguments.drain_seconds + 10,
    )
    return ingress.bind(
        replicas.bind(arguments.server | shared, arguments.start_seconds, arguments.drain_seconds),
        arguments.max_body_bytes,
        arguments.queue_seconds,
    )
