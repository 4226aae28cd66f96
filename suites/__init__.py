"""Test suites for users: one folder per question. Importable as `gguf_harness.suites`."""
