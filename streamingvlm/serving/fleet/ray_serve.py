"""Replicas under Ray Serve, which starts them where there are GPUs, checks their health and replaces failed ones.

Ray Serve's own HTTP proxy is disabled: it queues requests without bound, so no backpressure would reach a client that
pushes frames; it does not route by session; and it would bypass ``RequestMiddleware``.
"""

import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import ray
import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from streamingvlm.config import above, at_least
from streamingvlm.errors import ConfigError
from streamingvlm.model.loading import load_model
from streamingvlm.serving.fleet.replica import ReplicaServer
from streamingvlm.serving.fleet.replica_client import ReplicaAddress
from streamingvlm.serving.logs import log_json
from streamingvlm.serving.server_config import ServerConfig
from streamingvlm.serving.stream_pool import StreamPool

log = logging.getLogger(__name__)

APPLICATION, DEPLOYMENT = "streamingvlm", "Replica"

_DISCOVER_S = 5.0
_HEALTH_CHECK_S, _WAIT_LOOP_S = 2.0, 0.1
_LEAVE_SLACK_S = 10.0


@dataclass(frozen=True)
class ReplicaOptions:
    """Number and resources of the replicas.

    num_gpus, num_cpus: per replica, fractions allowed; num_gpus=None: one if this machine has any.
    address: of a running Ray cluster; None starts one on this machine.
    """

    num_replicas: int = 2
    num_gpus: float | None = None
    num_cpus: float = 1.0
    address: str | None = None

    def __post_init__(self):
        at_least("serving.num_replicas", self.num_replicas, 1, "sessions need a replica")
        at_least("serving.num_gpus", self.num_gpus or 0, 0, "GPUs per replica, fractions allowed")
        above("serving.num_cpus", self.num_cpus, 0, "CPUs per replica, fractions allowed")


@dataclass(frozen=True)
class ReplicaPlan:
    """Everything that a replica is built from. settings: ``cache``, ``video`` and ``sampling`` of its streams."""

    model: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    config: ServerConfig
    folder: Path
    secret: str
    log_level: str


class Replica:
    """The deployment of Ray Serve: a model, and a ``ReplicaServer`` at the address of its machine."""

    def __init__(self, plan: ReplicaPlan):
        log_json(plan.log_level)
        model = load_model(**plan.model)
        self._pool = StreamPool(model, plan.settings, **plan.config.limits.engine_capacity)
        config = replace(plan.config, host=ray.util.get_node_ip_address(), api_keys=(plan.secret,))
        self._server = ReplicaServer(self._pool, config, plan.folder, plan.secret)

    def address(self) -> ReplicaAddress:
        """Return the address of the server."""
        context = serve.get_replica_context()
        return ReplicaAddress(context.replica_id.unique_id, self._server.url, os.getpid())

    def check_health(self):
        """Raise RuntimeError if the replica has failed. Called by Ray Serve, which then replaces it."""
        if not self._server.is_healthy:
            raise RuntimeError("the replica's server or its engine has stopped")

    def __del__(self):
        """Called by Ray Serve for a graceful shutdown."""
        if hasattr(self, "_server"):
            self._server.leave()
            self._pool.close()


class RayReplicas:
    """Context manager that runs the replicas of one server."""

    def __init__(self, options: ReplicaOptions, plan: ReplicaPlan):
        self.options, self.plan = options, plan
        self._handle: DeploymentHandle | None = None

    def __enter__(self) -> Self:
        _join_ray(self.options.address)
        serve.start(proxy_location=ProxyLocation.Disabled)
        try:
            # With an external scaler, Ray's scale command changes the number of replicas without restarting the others.
            self._handle = serve.run(
                self._deployment(), name=APPLICATION, route_prefix=None, external_scaler_enabled=True
            )
        except RuntimeError as error:
            self.__exit__()
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"the replicas do not start ({reason}); see Ray's logs") from error
        return self

    def __exit__(self, *_exception):
        serve.delete(APPLICATION)
        if self.options.address is None:
            serve.shutdown()
        ray.shutdown()

    def _deployment(self) -> serve.Application:
        options = self.options
        num_gpus = float(torch.cuda.is_available()) if options.num_gpus is None else options.num_gpus
        return serve.deployment(
            Replica,
            name=DEPLOYMENT,
            num_replicas=options.num_replicas,
            ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": num_gpus},
            health_check_period_s=_HEALTH_CHECK_S,
            graceful_shutdown_wait_loop_s=_WAIT_LOOP_S,
            graceful_shutdown_timeout_s=self.plan.config.limits.drain_s + _LEAVE_SLACK_S,
        ).bind(self.plan)

    async def discover(self) -> Iterable[ReplicaAddress]:
        """Return the addresses of all running replicas; one that is shutting down may be missing."""
        try:
            results = await self._handle.broadcast("address").results_async(
                timeout_s=_DISCOVER_S, return_exceptions=True
            )
        except (TimeoutError, RuntimeError, RayError, RayServeException) as error:
            log.info("the replicas cannot be discovered now", extra={"reason": repr(error)})
            return []
        return [address for address in results if isinstance(address, ReplicaAddress)]


def new_secret() -> str:
    """Return a random secret that authenticates a frontend to its replicas."""
    return secrets.token_urlsafe(32)


def _join_ray(address: str | None):
    """Join a cluster, or start one that listens on loopback only and has no dashboard."""
    options = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:  # Ray raises errors of many types
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"serving.address={address}: Ray cannot be joined or started ({reason})") from error
