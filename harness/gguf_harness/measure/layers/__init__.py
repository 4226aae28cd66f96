"""Hidden states of layers: their content, their updates, and the effect of skipping them."""
