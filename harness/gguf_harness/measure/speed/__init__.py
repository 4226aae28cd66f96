"""Speed and memory, by themselves, beside the reference's, and as clients of a server see them."""
