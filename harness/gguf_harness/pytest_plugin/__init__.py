"""The pytest plugin: options, parametrization, state, reporting, JUnit, progress. No other room imports pytest."""
