"""All that happens before the first job: look, decide, act, report."""
