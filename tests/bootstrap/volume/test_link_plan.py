"""Link plans on a file system made of a dict: what is linked where, and what conflicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath as Pure
from posixpath import normpath

import pytest

from bootstrap.volume.link_plan import (
    Conflict,
    EntryKind,
    LinkPlan,
    MakeFolder,
    MakeLink,
    RemoveLink,
    plan_links,
)

VOLUME = Pure("/v")
MODELS = Pure("/v/models")
TARGET = Pure("/v/ComfyUI/models")
NEW = frozenset({"clip", "text_encoders", "unet", "diffusion_models", "loras"})
OLD = frozenset({"clip", "unet", "loras"})


class FakeTree:
    """A file system: path → content of a file, `None` for a folder, or `→ text` for a link."""

    def __init__(self, files: Mapping[str, str | None]) -> None:
        self.nodes: dict[Pure, str | None] = {Pure("/"): None}
        for path, content in files.items():
            for parent in Pure(path).parents:
                self.nodes.setdefault(parent, None)
            self.nodes[Pure(path)] = content

    def entries(self, folder: Pure) -> Mapping[str, EntryKind]:
        real = self.real(folder)
        found = [p for p in self.nodes if real is not None and p.parent == real and p != real]
        return {p.name: self._kind(p) for p in found}

    def kind(self, path: Pure) -> EntryKind | None:
        parent = self.real(path.parent)
        return (
            None
            if parent is None or parent / path.name not in self.nodes
            else self._kind(parent / path.name)
        )

    def leads_to(self, path: Pure) -> EntryKind | None:
        real = self.real(path)
        return None if real is None else self._kind(real)

    def link_text(self, path: Pure) -> str:
        return (self.nodes[path] or "").removeprefix("→ ")

    def alike(self, one: Pure, other: Pure) -> bool:
        a, b = self.real(one), self.real(other)
        if a is None or b is None:
            return False
        return a == b or (
            self._kind(a) is self._kind(b) is EntryKind.FILE and self.nodes[a] == self.nodes[b]
        )

    def real(self, path: Pure, hops: int = 20) -> Pure | None:
        """`path` without links; None when it is broken."""
        here = Pure("/")
        for part in path.parts[1:]:
            here /= part
            if here not in self.nodes or hops == 0:
                return None
            if self._kind(here) is EntryKind.LINK:
                text = normpath(str(here.parent / self.link_text(here)))
                following = self.real(Pure(text), hops - 1)
                if following is None:
                    return None
                here = following
        return here

    def _kind(self, path: Pure) -> EntryKind:
        content = self.nodes[path]
        if content is None:
            return EntryKind.FOLDER
        return EntryKind.LINK if content.startswith("→ ") else EntryKind.FILE


def plan(
    files: Mapping[str, str | None],
    *,
    sources: tuple[Pure, ...] = (MODELS,),
    target: Pure = TARGET,
    known: frozenset[str] = frozenset(),
) -> LinkPlan:
    return plan_links(FakeTree(files), sources, target, VOLUME, known)


def link(place: str, text: str) -> MakeLink:
    return MakeLink(Pure(place), text)


def test_where_comfyui_has_no_models_folder_the_whole_folder_is_linked() -> None:
    made = plan({"/v/ComfyUI/main.py": "", "/v/models/loras/a.pt": "a"})
    assert made == LinkPlan((link("/v/ComfyUI/models", "../models"),))


def test_where_comfyui_has_the_folder_but_not_the_category_the_category_is_linked() -> None:
    made = plan({"/v/models/loras/a.pt": "a", "/v/models/mine/b.pt": "b", str(TARGET): None})
    assert made.actions == (
        link("/v/ComfyUI/models/loras", "../../models/loras"),
        link("/v/ComfyUI/models/mine", "../../models/mine"),
    )


def test_where_comfyui_has_the_category_the_files_are_linked() -> None:
    made = plan(
        {
            "/v/models/loras/a.pt": "a",
            "/v/models/loras/sub/b.pt": "b",
            f"{TARGET}/loras/put_loras_here": "",
        }
    )
    assert made.actions == (
        link("/v/ComfyUI/models/loras/a.pt", "../../../models/loras/a.pt"),
        link("/v/ComfyUI/models/loras/sub", "../../../models/loras/sub"),
    )
    assert made.conflicts == ()


def test_what_is_linked_already_needs_nothing() -> None:
    files: dict[str, str | None] = {"/v/models/loras/a.pt": "a"}
    assert plan({**files, str(TARGET): "→ ../models"}) == LinkPlan()
    assert plan({**files, f"{TARGET}/loras": "→ ../../models/loras"}) == LinkPlan()
    assert plan({**files, f"{TARGET}/loras/a.pt": "→ ../../../models/loras/a.pt"}) == LinkPlan()


def test_links_from_an_image_to_the_volume_are_absolute() -> None:
    made = plan(
        {"/v/models/loras/a.pt": "a", "/opt/ComfyUI/models/x": ""},
        target=Pure("/opt/ComfyUI/models"),
    )
    assert made.actions == (link("/opt/ComfyUI/models/loras", "/v/models/loras"),)


def test_hidden_entries_and_links_that_lead_nowhere_are_not_shown() -> None:
    made = plan(
        {
            "/v/models/.cache/x": "",
            "/v/models/loras/.a.pt": "",
            str(TARGET): None,
            "/v/models/gone": "→ /nowhere",
        }
    )
    assert made.actions == (link("/v/ComfyUI/models/loras", "../../models/loras"),)


def test_a_different_file_of_the_same_name_is_a_conflict_and_stays() -> None:
    made = plan({"/v/models/loras/a.pt": "one", f"{TARGET}/loras/a.pt": "other"})
    assert made.actions == ()
    place, source = TARGET / "loras/a.pt", MODELS / "loras/a.pt"
    assert made.conflicts == (Conflict(place, source, "a different file has that name"),)


def test_the_same_content_under_the_same_name_is_not_a_conflict() -> None:
    assert plan({"/v/models/loras/a.pt": "one", f"{TARGET}/loras/a.pt": "one"}) == LinkPlan()


def test_a_file_where_a_folder_needs_to_be_is_a_conflict() -> None:
    made = plan({"/v/models/loras/a.pt": "a", f"{TARGET}/loras": "a file"})
    assert [c.source for c in made.conflicts] == [MODELS / "loras"]


def test_models_go_into_the_folder_on_the_volume_that_a_category_is_a_link_to() -> None:
    files = {"/v/models/loras/a.pt": "a", "/v/old/b.pt": "b", f"{TARGET}/loras": "→ /v/old"}
    made = plan(files)
    assert made == LinkPlan((link("/v/old/a.pt", "../models/loras/a.pt"),))
    assert plan({**files, "/v/old/a.pt": "→ ../models/loras/a.pt"}) == LinkPlan()
    assert [c.place for c in plan({**files, "/v/old/a.pt": "other"}).conflicts] == [
        Pure("/v/old/a.pt")
    ]


def test_models_go_into_the_folder_that_all_of_models_is_a_link_to() -> None:
    files = {"/v/models/loras/a.pt": "a", "/v/shared/loras/b.pt": "b", str(TARGET): "→ ../shared"}
    made = plan(files)
    assert made == LinkPlan((link("/v/shared/loras/a.pt", "../../models/loras/a.pt"),))


def test_our_links_behind_a_category_s_link_go_with_their_models() -> None:
    files = {"/v/old/b.pt": "b", f"{TARGET}/loras": "→ /v/old"}
    gone = {**files, "/v/old/a.pt": "→ ../models/loras/a.pt"}
    assert plan(gone).actions == (RemoveLink(Pure("/v/old/a.pt"), "../models/loras/a.pt"),)


@pytest.mark.parametrize(
    "leads", ["/elsewhere", "/v", "/v/models", "/v/models/loras/sub", "/v/ComfyUI/models"]
)
def test_nothing_goes_off_the_volume_or_round_in_a_circle(leads: str) -> None:
    made = plan(
        {
            "/v/models/loras/a.pt": "a",
            "/v/models/loras/sub/c.pt": "c",
            "/elsewhere/b.pt": "b",
            f"{TARGET}/vae/d.pt": "d",
            f"{TARGET}/loras": f"→ {leads}",
        }
    )
    assert [type(action) for action in made.actions if action.place.name == "a.pt"] == []
    assert f"a link to something else is there ({leads})" in made.conflicts[0].reason


def test_our_dead_links_behind_a_link_that_leaves_the_volume_stay() -> None:
    gone = {"/elsewhere/loras/a.pt": "→ /v/models/loras/a.pt", str(TARGET): "→ /elsewhere"}
    assert plan(gone).actions == ()
    gone = {"/elsewhere/a.pt": "→ /v/models/loras/a.pt", f"{TARGET}/loras": "→ /elsewhere"}
    assert plan(gone).actions == ()


def test_anothers_link_that_leads_nowhere_is_a_conflict_where_it_is_in_the_way() -> None:
    made = plan({"/v/models/loras/a.pt": "a", f"{TARGET}/loras": "→ /v/gone"})
    assert made.actions == ()
    assert "a broken link that is not ours is there (/v/gone)" in made.conflicts[0].reason


def test_our_link_whose_model_is_gone_is_removed_and_others_stay() -> None:
    made = plan(
        {
            "/v/models/loras/b.pt": "b",
            f"{TARGET}/loras/b.pt": "→ ../../../models/loras/b.pt",
            f"{TARGET}/loras/a.pt": "→ ../../../models/loras/a.pt",
            f"{TARGET}/loras/c.pt": "→ ../../../models/loras/other-name.pt",
        }
    )
    text = "../../../models/loras/a.pt"
    assert made == LinkPlan((RemoveLink(TARGET / "loras/a.pt", text),))


def test_our_links_are_removed_when_their_whole_category_is_gone() -> None:
    made = plan(
        {
            "/v/models/vae/b.pt": "b",
            f"{TARGET}/vae": "→ ../../models/vae",
            f"{TARGET}/loras/sub/a.pt": "→ ../../../../models/loras/sub/a.pt",
        }
    )
    place = TARGET / "loras/sub/a.pt"
    assert made == LinkPlan((RemoveLink(place, "../../../../models/loras/sub/a.pt"),))


def test_our_whole_link_is_removed_when_the_models_folder_is_gone() -> None:
    made = plan({"/v/ComfyUI/main.py": "", str(TARGET): "→ ../models"})
    assert made == LinkPlan((RemoveLink(TARGET, "../models"),))


def test_our_broken_link_makes_way_for_another_source_of_the_same_name() -> None:
    other = Pure("/v/more")
    files = {
        "/v/models/vae/x": "",
        "/v/more/loras/a.pt": "a",
        f"{TARGET}/vae": "→ ../../models/vae",
        f"{TARGET}/loras": "→ ../../models/loras",
    }
    made = plan(files, sources=(MODELS, other))
    assert made.actions == (
        RemoveLink(TARGET / "loras", "../../models/loras"),
        link(f"{TARGET}/loras", "../../more/loras"),
    )
    assert made.conflicts == ()


def test_two_sources_of_one_category_are_merged_in_a_real_folder() -> None:
    made = plan(
        {"/v/models/loras/a.pt": "a", "/v/more/loras/b.pt": "b", str(TARGET): None},
        sources=(MODELS, Pure("/v/more")),
    )
    assert made.actions == (
        MakeFolder(TARGET / "loras"),
        link(f"{TARGET}/loras/a.pt", "../../../models/loras/a.pt"),
        link(f"{TARGET}/loras/b.pt", "../../../more/loras/b.pt"),
    )


def test_of_two_sources_with_different_files_the_first_wins_and_the_other_is_a_conflict() -> None:
    made = plan(
        {"/v/models/loras/a.pt": "a", "/v/more/loras/a.pt": "b", str(TARGET): None},
        sources=(MODELS, Pure("/v/more")),
    )
    assert link(f"{TARGET}/loras/a.pt", "../../../models/loras/a.pt") in made.actions
    assert [c.source for c in made.conflicts] == [Pure("/v/more/loras/a.pt")]


def test_a_source_named_twice_counts_once() -> None:
    made = plan({"/v/models/loras/a.pt": "a"}, sources=(MODELS, MODELS))
    assert made.actions == (link("/v/ComfyUI/models", "../models"),)


def test_an_old_comfyui_sees_text_encoders_under_clip_as_well() -> None:
    made = plan({"/v/models/text_encoders/t.pt": "t", str(TARGET): None}, known=OLD)
    assert set(made.actions) == {
        link(f"{TARGET}/text_encoders", "../../models/text_encoders"),
        link(f"{TARGET}/clip", "../../models/text_encoders"),
    }


def test_an_old_comfyui_without_models_folder_gets_a_real_one_for_both_names() -> None:
    made = plan({"/v/ComfyUI/main.py": "", "/v/models/text_encoders/t.pt": "t"}, known=OLD)
    assert made.actions[0] == MakeFolder(TARGET)
    assert link(f"{TARGET}/clip", "../../models/text_encoders") in made.actions


def test_clip_and_text_encoders_are_merged_for_an_old_comfyui() -> None:
    made = plan(
        {"/v/models/text_encoders/t.pt": "t", "/v/models/clip/c.pt": "c", str(TARGET): None},
        known=OLD,
    )
    clip = [a for a in made.actions if a.place.is_relative_to(TARGET / "clip")]
    assert clip == [
        MakeFolder(TARGET / "clip"),
        link(f"{TARGET}/clip/c.pt", "../../../models/clip/c.pt"),
        link(f"{TARGET}/clip/t.pt", "../../../models/text_encoders/t.pt"),
    ]


def test_a_new_comfyui_gets_each_folder_under_its_own_name_only() -> None:
    made = plan(
        {"/v/models/text_encoders/t.pt": "t", "/v/models/unet/u.pt": "u", str(TARGET): None},
        known=NEW,
    )
    assert set(made.actions) == {
        link(f"{TARGET}/text_encoders", "../../models/text_encoders"),
        link(f"{TARGET}/unet", "../../models/unet"),
    }


def test_a_folder_in_comfyuis_own_models_that_it_does_not_know_gets_its_older_name() -> None:
    files = {f"{TARGET}/diffusion_models/d.pt": "d"}
    expected = (link(f"{TARGET}/unet", "diffusion_models"),)
    assert plan(files, sources=(), known=OLD).actions == expected
    assert plan(files, sources=(), known=NEW).actions == ()
    linked = {**files, f"{TARGET}/unet": "→ diffusion_models"}
    assert plan(linked, sources=(), known=OLD) == LinkPlan()


def test_a_whole_link_that_this_comfyui_reads_in_part_gets_the_older_name_too() -> None:
    files = {"/v/models/text_encoders/t.pt": "t", str(TARGET): "→ ../models"}
    assert plan(files, known=OLD).actions == (link(f"{TARGET}/clip", "text_encoders"),)


def test_an_older_name_whose_folder_is_gone_is_removed() -> None:
    for text in ("../../models/text_encoders", "text_encoders"):
        made = plan(
            {
                "/v/models/vae/x": "",
                f"{TARGET}/clip": f"→ {text}",
                f"{TARGET}/vae": "→ ../../models/vae",
            },
            known=OLD,
        )
        assert made == LinkPlan((RemoveLink(TARGET / "clip", text),))


def test_two_names_of_one_category_with_different_files_of_one_name_are_reported() -> None:
    made = plan({"/v/models/clip/a.pt": "one", "/v/models/text_encoders/a.pt": "other"}, known=NEW)
    assert [c.reason for c in made.conflicts] == [
        "ComfyUI reads clip and text_encoders as one category"
    ]
    same = plan({"/v/models/clip/a.pt": "one", "/v/models/text_encoders/a.pt": "one"}, known=NEW)
    assert same.conflicts == ()


def test_a_models_folder_that_links_into_comfyui_needs_nothing() -> None:
    made = plan({"/v/models/loras": "→ ../ComfyUI/models/loras", f"{TARGET}/loras/a.pt": "a"})
    assert made == LinkPlan()


def test_without_any_source_nothing_is_planned() -> None:
    assert plan({"/v/ComfyUI/main.py": ""}, sources=()) == LinkPlan()
    assert plan({"/v/ComfyUI/main.py": "", "/v/x": ""}) == LinkPlan()
