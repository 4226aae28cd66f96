"""A graph to Graphistry, through PyGraphistry: only when a person asks for it, with credentials of theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from gguf_harness.errors import GraphError
from gguf_harness.extras import require_extra
from gguf_harness.graphs.graph import Graph
from gguf_harness.graphs.write import to_arrow

__all__ = ["upload"]

_CREDENTIALS: Final = (
    {"username": "GRAPHISTRY_USERNAME", "password": "GRAPHISTRY_PASSWORD"},
    {"personal_key_id": "GRAPHISTRY_PERSONAL_KEY_ID", "personal_key_secret": "GRAPHISTRY_PERSONAL_KEY_SECRET"},
)
_SERVER: Final = "GRAPHISTRY_SERVER"


def upload(graph: Graph, environment: Mapping[str, str] = os.environ) -> str:
    """Upload a graph, to be seen by its owner only, and return its address.

    Nothing else in gguf-harness calls this, but for `gguf-harness graph --upload`.

    Args:
        graph: all of its nodes and edges, labels included, leave this machine.
        environment: where GRAPHISTRY_USERNAME and GRAPHISTRY_PASSWORD are, or GRAPHISTRY_PERSONAL_KEY_ID and
            GRAPHISTRY_PERSONAL_KEY_SECRET; GRAPHISTRY_SERVER for another server than hub.graphistry.com.

    Raises:
        GraphError: credentials are missing, or PyGraphistry failed. Nothing was uploaded.
        MissingExtra: PyGraphistry is not installed.
    """
    credentials = _credentials(environment)
    require_extra("graph", "Uploading a graph")
    import graphistry

    server = {"server": environment[_SERVER]} if environment.get(_SERVER) else {}
    try:
        graphistry.register(api=3, protocol="https", **server, **credentials)
        # Without this, whoever has the address can look.
        graphistry.privacy(mode="private")
        nodes, edges = (to_arrow(graph, table).to_pandas() for table in (graph.nodes, graph.edges))
        plotter = graphistry.nodes(nodes, "id").edges(edges, "source", "target")
        plotter = plotter.bind(point_title="label", point_x="x", point_y="y", edge_weight="weight")
        address = plotter.name(f"{graph.name}: {graph.kind}").settings(url_params={"play": 0}).plot(render=False)
    except Exception as error:  # of the network, the server, the account: whatever the library comes up with
        # Its messages may quote what was sent; credentials must not end up in a log.
        text = str(error)
        for secret in credentials.values():
            text = text.replace(secret, "***")
        raise GraphError(
            f"Not uploaded: {type(error).__name__}: {text}.", "Check account, server and network."
        ) from None
    return str(address)


def _credentials(environment: Mapping[str, str]) -> dict[str, str]:
    for names in _CREDENTIALS:
        found = {argument: environment.get(name, "") for argument, name in names.items()}
        if all(found.values()):
            return found
    pairs = (" and ".join(names.values()) for names in _CREDENTIALS)
    raise GraphError(
        "Not uploaded: there are no credentials for Graphistry.", f"Set in the environment {', or '.join(pairs)}."
    )
