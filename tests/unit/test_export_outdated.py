"""A certificate beside the folder never speaks of another folder, at whatever moment an export is cut."""

from pathlib import Path

import pytest
from export_models import FAMILY_BY_TYPE, build_adapter, build_base
from test_export_folder import ORIGIN

from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate.certify import Certificate
from gemma_ft.exporting.folder.checkpoint import export_checkpoint


@pytest.fixture
def export(tmp_path):
    base = build_base(tmp_path / "base")
    adapter = build_adapter(base, tmp_path / "adapter")
    (tmp_path / "certificate.json").write_text("of an earlier export")

    def run(prove=lambda *_: Certificate({}, [])):
        return export_checkpoint(
            base=base,
            trained=adapter,
            destination=tmp_path / "merged",
            family=FAMILY_BY_TYPE["gemma"],
            origin=ORIGIN,
            shard_bytes=10**9,
            prove=prove,
            outdated=tmp_path / "certificate.json",
        )

    return run


def test_certificate_of_an_earlier_export_is_gone_before_its_folder_is(export, tmp_path, monkeypatch):
    export()
    (tmp_path / "certificate.json").write_text("of an earlier export")
    renamed, rename = [], Path.rename

    def watch(path, target):
        assert not (tmp_path / "certificate.json").exists()
        renamed.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watch)
    export()
    assert renamed[:2] == ["merged", "merged.partial"]


def test_certificate_of_an_earlier_export_stays_where_the_new_one_is_refused(export, tmp_path):
    def refuse(*_):
        raise ExportError("planned")

    with pytest.raises(ExportError, match="planned"):
        export(refuse)
    assert (tmp_path / "certificate.json").read_text() == "of an earlier export"


@pytest.mark.parametrize("name", ["merged.partial", "merged.replaced"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_files_and_links_in_the_way_are_taken_away_and_what_a_link_names_is_not(name, kind, export, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("kept")
    export()
    if kind == "link":
        (tmp_path / name).symlink_to(tmp_path / "mine")
    else:
        (tmp_path / name).write_text("left by something else")
    export()
    assert (tmp_path / "mine" / "notes").read_text() == "kept"
    assert not (tmp_path / name).exists()
