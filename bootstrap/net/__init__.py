"""HTTP to addresses that were checked, with credentials for exactly the hosts they belong to."""

__all__ = ["addresses", "errors", "http"]
