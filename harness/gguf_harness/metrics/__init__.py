"""Pure functions from arrays to estimates: no model, no file, no clock."""
