"""A report as one self-contained HTML page: `page(report)`."""

from bootstrap.doctor.html.document import page

__all__ = ["page", "text"]
