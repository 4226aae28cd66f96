"""What the KV cache costs, by its types and by depth."""
