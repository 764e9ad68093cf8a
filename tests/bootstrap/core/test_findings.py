"""Findings: their order, their form as data, and the outcome of a set."""

from __future__ import annotations

import json

from bootstrap.core.findings import (
    Finding,
    Outcome,
    Severity,
    docs_url,
    error,
    errors_in,
    host_error,
    info,
    ok,
    outcome_of,
    warning,
    worst_first,
)

OK = ok("a.ok", "Good.")
INFO = info("a.info", "Note.")
WARNING = warning("a.warning", "Odd.", "Look.")
ERROR = error("a.error", "Broken.", "Fix.", path="/x")
HOST = host_error("a.host", "Bad machine.", "Take another.")


def test_severities_rise_from_ok_to_error() -> None:
    ranks = [s.rank for s in (Severity.OK, Severity.INFO, Severity.WARNING, Severity.ERROR)]
    assert ranks == sorted(set(ranks))


def test_each_maker_sets_its_severity() -> None:
    made = [f.severity.value for f in (OK, INFO, WARNING, ERROR, HOST)]
    assert made == ["ok", "info", "warning", "error", "error"]
    assert [f.host_fault for f in (ERROR, HOST)] == [False, True]


def test_as_data_empty_fields_are_left_out() -> None:
    assert OK.as_dict() == {"code": "a.ok", "severity": "ok", "message": "Good."}
    assert ERROR.as_dict() == {
        "code": "a.error",
        "severity": "error",
        "message": "Broken.",
        "fix": "Fix.",
        "docs": docs_url("a.error"),
        "details": {"path": "/x"},
    }
    assert HOST.as_dict()["host_fault"] is True
    assert json.loads(json.dumps(HOST.as_dict())) == HOST.as_dict()


def test_details_may_have_any_name() -> None:
    found = error("a.b", "m", "f", code=1, message=2, fix=3)
    assert found.code == "a.b"
    assert found.details == {"code": 1, "message": 2, "fix": 3}


def test_nothing_wrong_is_ready_and_warnings_do_not_change_that() -> None:
    assert outcome_of([]) is Outcome.READY
    assert outcome_of([OK, INFO, WARNING]) is Outcome.READY


def test_an_error_is_degraded_and_a_fault_of_the_host_outweighs_it() -> None:
    assert outcome_of([WARNING, ERROR]) is Outcome.DEGRADED
    assert outcome_of([ERROR, HOST, ERROR]) is Outcome.UNFIT


def test_a_host_fault_that_is_only_a_warning_is_ready() -> None:
    assert outcome_of([Finding("a.b", Severity.WARNING, "m", host_fault=True)]) is Outcome.READY


def test_errors_in_keeps_errors_only_in_their_order() -> None:
    assert errors_in([HOST, OK, WARNING, ERROR]) == (HOST, ERROR)


def test_the_worst_comes_first_and_equals_keep_their_order() -> None:
    assert worst_first([OK, ERROR, INFO, HOST, WARNING]) == [ERROR, HOST, WARNING, INFO, OK]
