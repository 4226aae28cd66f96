"""Registers the plugin (and with it fixtures/) where the package is not installed."""

pytest_plugins = ["gguf_harness.pytest_plugin.plugin"]
