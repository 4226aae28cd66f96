"""Hidden states of layers: what they hold, what they add, and what goes without them."""
