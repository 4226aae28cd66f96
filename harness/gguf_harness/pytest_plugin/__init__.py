"""The only place that knows pytest: options, parametrization, state, reporting, JUnit, progress."""
