"""Analyses of sets of points: projections, clusters, neighbors and similarity. They run in a child process.

They are written once, against scikit-learn and umap-learn; with cuML and a GPU, `cuml.accel` takes their place there.
"""
