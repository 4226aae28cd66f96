"""Test suites that users run: one folder per question. Importable as `gguf_harness.suites`."""
