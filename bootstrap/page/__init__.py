"""A report as one self-contained HTML page: `page(report)`."""

from bootstrap.page.document import page

__all__ = ["page"]
