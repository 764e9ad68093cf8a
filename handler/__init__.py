"""All that happens to a job."""
