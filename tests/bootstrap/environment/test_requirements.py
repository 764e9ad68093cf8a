"""Versions, markers and requirement lines, held against `packaging`, which a bare Pod lacks."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Real
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion
from packaging.version import Version as RealVersion

from bootstrap.environment.requirements import (
    MOST_REQUIREMENTS,
    Requirement,
    normalised,
    parse_file,
    parse_pyproject,
    parse_requirement,
    project_text,
)
from bootstrap.environment.versions import are_specifiers, evaluate, parse_version, satisfies

small = st.integers(0, 3).map(str)
release = st.lists(small, min_size=1, max_size=4).map(".".join)
pre = st.sampled_from(["", "a", "b1", "rc2", ".alpha.1", "-preview_2", "c1", "_pre"])
post = st.sampled_from(["", ".post1", "-2", "rev3", "_r1", ".post"])
dev = st.sampled_from(["", ".dev0", "dev1", "-dev2", "_dev"])
local = st.sampled_from(["", "+cu128", "+cpu", "+1", "+abc.2", "+ABC-10", "+2.cu"])
epoch = st.sampled_from(["", "1!", "0!", "v", "v2!"])
versions = st.builds(lambda *parts: "".join(parts), epoch, release, pre, post, dev, local)
operators = st.sampled_from(["==", "!=", "<=", ">=", "<", ">", "~=", "==="])
wanted = st.one_of(versions, release.map("{}.*".format))
clauses = st.builds(str.__add__, operators, wanted)
MACHINE = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "6.8.0-45-generic",
    "platform_system": "Linux",
    "platform_version": "#1 SMP",
    "python_version": "3.11",
    "python_full_version": "3.11.7",
    "implementation_name": "cpython",
    "implementation_version": "3.11.7",
    "extra": "",
}


@given(versions, versions)
def test_versions_sort_as_packaging_sorts_them(a: str, b: str) -> None:
    ours, others = parse_version(a), parse_version(b)
    assert ours is not None and others is not None
    assert (ours.key < others.key) is (RealVersion(a) < RealVersion(b))
    assert (ours.key == others.key) is (RealVersion(a) == RealVersion(b))
    assert ours.is_prerelease is RealVersion(a).is_prerelease


@given(st.text(alphabet="0123.!+-_abcrdevpost v١", max_size=12))
def test_a_text_is_a_version_where_packaging_says_so(text: str) -> None:
    try:
        RealVersion(text)
    except InvalidVersion:
        assert parse_version(text) is None
    else:
        assert parse_version(text) is not None


@given(versions, st.lists(clauses, max_size=3).map(",".join))
@example("2.13.0+cpu", "==2.13.0")
@example("2.0rc1", "<2.0")
@example("1.7.post1", ">1.7")
@example("1.7.post1", ">1.7.dev0")
@example("1.7.post1", ">1.7a1")
@example("1.7a1.post1", ">1.7a1")
@example("1.0.dev1", "<1.0.post1")
@example("1.0.post1.dev1", "<1.0.post1")
@example("1.7+local", ">1.7")
@example("1.0.dev1", "~=1.0.dev0")
def test_specifiers_are_met_where_packaging_says_so(version: str, specifiers: str) -> None:
    try:
        expected = SpecifierSet(specifiers).contains(version, prereleases=True)
    except InvalidSpecifier:
        assert not are_specifiers(specifiers)
        assert satisfies(version, specifiers) is not True
    else:
        assert satisfies(version, specifiers) is expected


@pytest.mark.parametrize("text", ["1" * 5000, "1." * 200 + "1", "", "latest", "1.0;", "1!"])
def test_what_is_no_version_decides_nothing(text: str) -> None:
    assert parse_version(text) is None
    assert satisfies(text, ">=1") is None


@pytest.mark.parametrize("clause", [">=1.*", "=1.0", "~=1", "1.0", ">=", ">=1.0+cu12", ">=x"])
def test_a_clause_that_is_none_decides_nothing(clause: str) -> None:
    assert not are_specifiers(clause)
    assert satisfies("1.0", clause) is None
    assert satisfies("1.0", f"{clause},>2") is False


@pytest.mark.parametrize(
    "marker",
    [
        'python_version < "3.12"',
        'python_version >= "3.10" and sys_platform == "linux"',
        'sys_platform == "win32" or platform_machine != "arm64"',
        "'3.8' <= python_version",
        "'3.12' <= python_version",
        'python_version in "3.10 3.11"',
        'python_version not in "3.10 3.11"',
        'platform_system == "Windows"',
        '(python_version < "3.9" or os_name == "posix") and extra == ""',
        'extra == "gpu"',
        'python_full_version == "3.11.*"',
        'implementation_name == "cpython" and platform_python_implementation == "CPython"',
        "sys.platform == 'linux'",
        'platform_machine in "x86_64 AMD64"',
        '"linux" in sys_platform',
        'python_version ~= "3.9"',
        'sys_platform != "darwin" or python_version < "3" and python_version > "4"',
    ],
)
def test_markers_are_evaluated_as_packaging_does(marker: str) -> None:
    assert evaluate(marker, MACHINE) is Marker(marker).evaluate(dict(MACHINE))


@given(
    st.recursive(
        st.builds(
            '{} {} "{}"'.format,
            st.sampled_from(["python_version", "python_full_version"]),
            st.sampled_from(["<", "<=", "==", "!=", ">=", ">"]),
            st.sampled_from(["3.9", "3.11", "3.11.7", "3.13"]),
        ),
        lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
        max_leaves=5,
    )
)
def test_any_combination_is_evaluated_as_packaging_does(marker: str) -> None:
    assert evaluate(marker, MACHINE) is Marker(marker).evaluate(dict(MACHINE))


@pytest.mark.parametrize(
    "marker",
    [
        "python_version",
        'python_version < "3.12" or',
        'weather == "fine"',
        'python_version < "3.12" sys_platform',
        '(python_version < "3.12"',
        'platform_release >= "6"',
        "((" * 600,
        'python_version ? "3"',
        'python_version < ""',
        ")",
    ],
)
def test_a_marker_that_is_not_understood_decides_nothing(marker: str) -> None:
    assert evaluate(marker, MACHINE) is None


def test_one_side_can_decide_for_both() -> None:
    unknown, true, false = 'a == "b"', 'os_name == "posix"', 'os_name == "nt"'
    assert evaluate(f"{unknown} or {true}", MACHINE) is True
    assert evaluate(f"{unknown} and {false}", MACHINE) is False
    assert evaluate(f"{unknown} and {true}", MACHINE) is None
    assert evaluate(f"{unknown} or {false}", MACHINE) is None


names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,6}[A-Za-z0-9])?", fullmatch=True)
spaces = st.sampled_from(["", " ", "  "])


@given(
    names,
    st.sampled_from(["", "[cuda]", "[a, b-c]", " [x]"]),
    st.lists(clauses, max_size=2),
    spaces,
    st.sampled_from(["", "; python_version < '3.12'", ' ; sys_platform == "win32"']),
)
def test_a_line_is_read_as_packaging_reads_it(
    name: str, extras: str, clause: list[str], space: str, marker: str
) -> None:
    line = f"{name}{extras}{space}{(space + ',' + space).join(clause)}{marker}"
    ours = parse_requirement(line)
    try:
        real = Real(line)
    except InvalidRequirement:
        assert ours is None
        return
    if ours is None:  # allowed: nothing is said about it
        assert "===" in line
        return
    assert ours.name == canonicalize_name(real.name)
    assert set(ours.extras) == real.extras
    assert SpecifierSet(ours.specifiers) == real.specifier
    assert bool(ours.marker) is (real.marker is not None)
    again = Real(ours.text)
    assert (again.name, again.specifier) == (real.name, real.specifier)


@given(st.text(max_size=60))
def test_no_line_is_too_strange(text: str) -> None:
    wishes = parse_file(text)
    parse_pyproject(text)
    for requirement in wishes.requirements:
        assert requirement.name == normalised(requirement.name)
        assert not requirement.text.startswith("-")


FILE = """\ufeff# ComfyUI-Some-Pack
--extra-index-url https://example.com/whl
-i https://example.com/simple
numpy>=1.25.0,<3   # arrays
Pillow
opencv-python ; sys_platform == "win32"
onnxruntime-gpu == 1.18.* --hash=sha256:abc \\
    --hash=sha256:def
transformers[torch] \\
    >= 4.50.3
-e git+https://github.com/somebody/some-thing.git@main#egg=some_thing
segment_anything @ git+https://github.com/facebookresearch/segment-anything.git ; os_name == "posix"
https://example.com/wheels/sage_attention-2.1.1+cu128-cp311-cp311-linux_x86_64.whl
git+https://github.com/somebody/nameless
./wheels/local.whl
-r more/extra.txt
-c constraints.txt
--requirement="base.txt"
numpy>=1.25.0,<3
"""


def test_a_file_with_everything() -> None:
    wishes = parse_file(FILE)
    assert [(r.name, r.specifiers, r.marker) for r in wishes.requirements] == [
        ("numpy", ">=1.25.0,<3", ""),
        ("pillow", "", ""),
        ("opencv-python", "", 'sys_platform == "win32"'),
        ("onnxruntime-gpu", "==1.18.*", ""),
        ("transformers", ">=4.50.3", ""),
        ("some-thing", "", ""),
        ("segment-anything", "", 'os_name == "posix"'),
        ("sage-attention", "", ""),
    ]
    assert wishes.includes == ("more/extra.txt", "base.txt")
    assert wishes.unread == ("git+https://github.com/somebody/nameless", "./wheels/local.whl")
    assert wishes.requirements[4].text == "transformers[torch]>=4.50.3"
    assert wishes.requirements[5].text.startswith("git+https://")


def test_a_file_is_read_to_a_bound() -> None:
    text = "\n".join(f"package{n}" for n in range(2 * MOST_REQUIREMENTS))
    assert len(parse_file(text).requirements) == MOST_REQUIREMENTS
    assert parse_requirement("x" * 10_000) is None


PYPROJECT = """
[build-system]
requires = ["setuptools"]

[project] # the pack
name = "some-pack"
version = "1.2.3" # of the pack
dependencies = [
    "numpy>=1.25",  # arrays, "quoted"
    'einops',
    "colour ; python_version < \\"3.12\\"",
]
requires-python = ">=3.10"

[project.optional-dependencies]
dependencies = ["never"]
"""


def test_a_pyproject() -> None:
    wishes = parse_pyproject(PYPROJECT)
    assert wishes.requirements == (
        Requirement("numpy", "numpy>=1.25", ">=1.25"),
        Requirement("einops", "einops"),
        Requirement("colour", "colour", marker='python_version < "3.12"'),
    )
    assert project_text(PYPROJECT, "version") == "1.2.3"
    assert project_text(PYPROJECT, "requires-python") == ">=3.10"
    assert project_text(PYPROJECT, "license") is None
    assert project_text("version = '1'", "version") is None
    assert parse_pyproject("[project]\ndynamic = ['dependencies']").requirements == ()
