"""Replicas under Ray Serve: it starts them where there are GPUs, looks after them, replaces those that die.

Ray Serve's own front door stays shut. Between it and a replica everything waits in queues without a bound, so that a
sender could not be held back by the model; it knows no sessions; and it would serve whom our gate turns away.
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
from streamingvlm.serving.config import ServerConfig
from streamingvlm.serving.fleet.link import Address
from streamingvlm.serving.fleet.replica import ReplicaServer
from streamingvlm.serving.logs import log_json
from streamingvlm.serving.streams import Streams

log = logging.getLogger(__name__)

APPLICATION, DEPLOYMENT = "streamingvlm", "Replica"

_ASK_S = 5.0
_HEALTH_CHECK_S, _WAIT_LOOP_S = 2.0, 0.1
_LEAVE_SLACK_S = 10.0


@dataclass(frozen=True)
class ReplicaOptions:
    """How many replicas there are, and what each of them gets.

    num_gpus, num_cpus: for each, parts allowed; None for a GPU where this machine has any.
    address: of a Ray cluster that runs, None for one on this machine alone.
    """

    num_replicas: int = 2
    num_gpus: float | None = None
    num_cpus: float = 1.0
    address: str | None = None

    def __post_init__(self):
        at_least("serving.num_replicas", self.num_replicas, 1, "a replica holds the sessions")
        at_least("serving.num_gpus", self.num_gpus or 0, 0, "GPUs a replica, parts allowed")
        above("serving.num_cpus", self.num_cpus, 0, "CPUs a replica, parts allowed")


@dataclass(frozen=True)
class ReplicaPlan:
    """All that a replica is made from. settings: ``cache``, ``video`` and ``sampling`` of its streams."""

    model: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    config: ServerConfig
    folder: Path
    secret: str
    log_level: str


class Replica:
    """What Ray Serve starts: a model, and a server of its sessions at the address of its machine."""

    def __init__(self, plan: ReplicaPlan):
        log_json(plan.log_level)
        model = load_model(**plan.model)
        self._streams = Streams(model, plan.settings, **plan.config.limits.room)
        config = replace(plan.config, host=ray.util.get_node_ip_address(), api_keys=(plan.secret,))
        self._server = ReplicaServer(self._streams, config, plan.folder, plan.secret)

    def address(self) -> Address:
        """Where it is."""
        context = serve.get_replica_context()
        return Address(context.replica_id.unique_id, self._server.url, os.getpid())

    def check_health(self):
        """Called by Ray Serve, which replaces a replica for which this raises."""
        if not self._server.is_well:
            raise RuntimeError("the replica does not serve, or its model does not run")

    def __del__(self):
        """Called by Ray Serve when the replica is to leave, with time to do so in good order."""
        if hasattr(self, "_server"):
            self._server.leave()
            self._streams.close()


class RayReplicas:
    """The replicas of one server, for as long as the context is open."""

    def __init__(self, options: ReplicaOptions, plan: ReplicaPlan):
        self.options, self.plan = options, plan
        self._handle: DeploymentHandle | None = None

    def __enter__(self) -> Self:
        _join_ray(self.options.address)
        serve.start(proxy_location=ProxyLocation.Disabled)
        try:
            # Then Ray's own command for it changes how many there are, and leaves alone those that stay.
            self._handle = serve.run(
                self._deployment(), name=APPLICATION, route_prefix=None, external_scaler_enabled=True
            )
        except RuntimeError as error:
            self.__exit__()
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"the replicas do not start ({reason}); Ray's logs tell more") from error
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

    async def find(self) -> Iterable[Address]:
        """Ask all replicas that run where they are; one that is about to go may not answer."""
        try:
            told = await self._handle.broadcast("address").results_async(timeout_s=_ASK_S, return_exceptions=True)
        except (TimeoutError, RuntimeError, RayError, RayServeException) as error:
            log.info("the replicas cannot be counted now", extra={"reason": repr(error)})
            return []
        return [address for address in told if isinstance(address, Address)]


def new_secret() -> str:
    """What lets a front in at its replicas."""
    return secrets.token_urlsafe(32)


def _join_ray(address: str | None):
    """Join a cluster; or start one that nobody can reach from outside, and that shows no dashboard."""
    options = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:  # what Ray raises where it does not start is of no kind of its own
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"serving.address={address}: Ray cannot be joined or started ({reason})") from error
