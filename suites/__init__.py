"""Test suites that users run: one folder per question. Importable as `harness.suites`."""
