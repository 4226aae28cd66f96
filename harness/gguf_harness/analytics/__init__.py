"""Analyses of sets of points: projections, clusters, neighbors and similarity, in a child process.

They are written once, against scikit-learn and umap-learn; with cuML and a GPU, `cuml.accel` replaces them in the
child.
"""
