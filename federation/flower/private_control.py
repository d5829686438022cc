"""The nodes and runs of a SuperLink: its Control interface, which ``flwr run`` and ``flwr supernode`` talk to."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from federation.flower.private import PATIENCE_S, Endpoint
from foundation.errors import RunError


@dataclass(frozen=True)
class NodeFacts:
    """A registered SuperNode as the SuperLink knows it; ``public_key``: PEM."""

    node_id: int
    name: str
    public_key: bytes
    online: bool


class ControlPlane:
    """Registers nodes and starts runs. Its address is on this machine only: the proxy in front does not pass it on."""

    def __init__(self, endpoint: Endpoint) -> None:
        retries = make_simple_http_retry_invoker()
        retries.max_time = PATIENCE_S
        self._client = ControlHttpClient.from_server_address(
            endpoint.address,
            endpoint.root is None,
            endpoint.root,
            [RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            retry_invoker=retries,
        )

    def nodes(self) -> list[NodeFacts]:
        """All nodes that are registered and not removed."""
        found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            NodeFacts(node.node_id, node.name, node.public_key, node.status == "online")
            for node in found
            if node.status != "unregistered"
        ]

    def register(self, name: str, public_key: bytes) -> int:
        """Admit a node by its public key (PEM); its number."""
        return int(self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Remove a node; whatever it sends from now on is refused."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, app: bytes, digest: str) -> int:
        """Start a run that ships ``app``; its number. RunError when the SuperLink refuses."""
        answer = self._client.StartRun(StartRunRequest(fab=fab_to_proto(Fab(digest, app, {}))))
        if not answer.HasField("run_id"):
            raise RunError("the SuperLink did not start a run; its log (superlink.log) says why")
        return int(answer.run_id)

    def stop_runs(self) -> None:
        """Stop all runs that a killed server left behind."""
        answer = self._client.ListRuns(ListRunsRequest())
        for run_id, run in answer.run_dict.items():
            if run.status.status != "finished":
                self._client.StopRun(StopRunRequest(run_id=run_id))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def sign_off(server: str, root: bytes, key: EllipticCurvePrivateKey, node_id: int) -> None:
    """Tell a server that this site's node is gone, as a killed SuperNode could not; nothing when it cannot be told.

    Flower takes a node that was killed for online until its heartbeats are missed, and lets no other in its place.
    """
    signed = NodeAuthHttpInterceptor(key, key.public_key())
    interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="SuperNode"), signed]
    with suppress(httpx.HTTPError), FleetHttpClient.from_server_address(server, False, root, interceptors) as client:
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
