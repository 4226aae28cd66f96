"""The KV cache: what its types cost, by depth and by head."""
