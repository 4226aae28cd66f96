"""Graphs of a model and its behaviour, as tables, written as Parquet and as an interactive page.

A builder takes plain data and builds one graph; nothing is measured here:

    ModelStructure      model -> block -> tensor, from the headers of GGUF files
    AttentionGraph      which token attends to which, in each layer and head, from attention patterns
    LayerTokenFlow      the residual stream from layer to layer, and the input from attention
    CosineNetwork       each point and its most similar ones, from vectors

    files = write_graph(AttentionGraph(pattern, tokens).build(), folder)
"""

from gguf_harness.graphs.attention_graph import AttentionGraph
from gguf_harness.graphs.cosine_network import CosineNetwork
from gguf_harness.graphs.graph import Column, Graph, GraphBuilder, Table
from gguf_harness.graphs.graphistry_upload import account_for_upload, upload
from gguf_harness.graphs.layer_token_flow import LayerTokenFlow
from gguf_harness.graphs.model_structure import ModelStructure
from gguf_harness.graphs.write import GraphFiles, write_graph

__all__ = [
    "AttentionGraph",
    "Column",
    "CosineNetwork",
    "Graph",
    "GraphBuilder",
    "GraphFiles",
    "LayerTokenFlow",
    "ModelStructure",
    "Table",
    "account_for_upload",
    "upload",
    "write_graph",
]
