"""From estimates to verdicts: gates, the plan, baselines, regressions, claims."""
