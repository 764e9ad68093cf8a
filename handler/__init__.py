"""Everything that happens to a job."""
