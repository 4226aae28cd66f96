"""Upload of a graph to Graphistry, through PyGraphistry: only on request, with the user's credentials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from gguf_harness.errors import GraphError, require_extra
from gguf_harness.graphs.graph import Graph
from gguf_harness.graphs.write import to_arrow

__all__ = ["account_for_upload", "upload"]

_CREDENTIALS: Final = (
    {"username": "GRAPHISTRY_USERNAME", "password": "GRAPHISTRY_PASSWORD"},
    {"personal_key_id": "GRAPHISTRY_PERSONAL_KEY_ID", "personal_key_secret": "GRAPHISTRY_PERSONAL_KEY_SECRET"},
)
_SERVER: Final = "GRAPHISTRY_SERVER"


def account_for_upload(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The credentials of an upload, by argument of `graphistry.register`. Call it before long work: nothing is sent.

    Args:
        environment: has GRAPHISTRY_USERNAME and GRAPHISTRY_PASSWORD, or GRAPHISTRY_PERSONAL_KEY_ID and
            GRAPHISTRY_PERSONAL_KEY_SECRET.

    Raises:
        GraphError: credentials are missing.
        MissingExtra: PyGraphistry is not installed.
    """
    credentials = _credentials(environment)
    require_extra("graph", "Uploading a graph")
    return credentials


def upload(graph: Graph, environment: Mapping[str, str] = os.environ) -> str:
    """Upload a graph, visible only to its owner, and return its address.

    Called only by `gguf-harness graph --upload`.

    Args:
        graph: all of its nodes, edges and labels are sent.
        environment: as of `account_for_upload`; also GRAPHISTRY_SERVER for another server than hub.graphistry.com.

    Raises:
        GraphError: credentials are missing, or PyGraphistry failed. Nothing was uploaded.
        MissingExtra: PyGraphistry is not installed.
    """
    credentials = account_for_upload(environment)
    import graphistry

    server = {"server": environment[_SERVER]} if environment.get(_SERVER) else {}
    try:
        graphistry.register(api=3, protocol="https", **server, **credentials)
        # Without this, anyone with the address can view it.
        graphistry.privacy(mode="private")
        nodes, edges = (to_arrow(graph, table).to_pandas() for table in (graph.nodes, graph.edges))
        plotter = graphistry.nodes(nodes, "id").edges(edges, "source", "target")
        plotter = plotter.bind(point_title="label", point_x="x", point_y="y", edge_weight="weight")
        address = plotter.name(f"{graph.name}: {graph.kind}").settings(url_params={"play": 0}).plot(render=False)
    except Exception as error:  # any error of the library: network, server, account
        # Its messages may quote the request; credentials must not end up in a log.
        text = str(error)
        for secret in credentials.values():
            text = text.replace(secret, "***")
        raise GraphError(
            f"Not uploaded: {type(error).__name__}: {text}.", "Check account, server and network."
        ) from None
    return str(address)


def _credentials(environment: Mapping[str, str]) -> dict[str, str]:
    for names in _CREDENTIALS:
        credentials = {argument: environment.get(name, "") for argument, name in names.items()}
        if all(credentials.values()):
            return credentials
    pairs = (" and ".join(names.values()) for names in _CREDENTIALS)
    raise GraphError(
        "Not uploaded: there are no credentials for Graphistry.", f"Set in the environment {', or '.join(pairs)}."
    )
