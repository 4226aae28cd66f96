"""Measurements on other machines: tasks of workers are called through Ray actors (`--gguf-ray`).

`parcels.py` and `node_files.py` move what paths lead to, `host.py` runs on a node, `actors.py` and `ray_worker.py` in
the session, `connection.py` finds a cluster and looks at its nodes. Ray is imported by functions only, when they are
used.
"""
