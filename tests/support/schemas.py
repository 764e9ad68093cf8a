"""Checks real replies and requests against the schemas in docs/."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

DOCS = Path(__file__).parent.parent.parent / "docs"


@functools.cache
def validator(name: str) -> Draft202012Validator:
    """For docs/NAME.schema.json."""
    schema = json.loads((DOCS / f"{name}.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_reply(reply: dict[str, Any]) -> None:
    """Raises ValidationError if a reply does not match its schema."""
    validator("reply").validate(reply)


def check_request(given: Any) -> None:
    """Raises ValidationError if an input does not match its schema."""
    validator("request").validate(given)
