"""Projections, clusters, neighbours and similarity of points; the work is done in analytics/."""
