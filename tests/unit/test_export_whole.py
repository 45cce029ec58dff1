"""A folder is whole under its name, a certificate beside it never another's, and a failing disk one line."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from export_models import FAMILY_BY_TYPE, build_adapter, build_base
from test_export_folder import ORIGIN

from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate.certify import Certificate
from gemma_ft.exporting.folder.checkpoint import export_checkpoint
from gemma_ft.exporting.folder.whole import whole_folder


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


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EDQUOT, "does not fit on its disk. Free some space"),
        (
            errno.EFBIG,
            "has a file that is too large for its disk. Write smaller ones: export.max_shard_size=2GB",
        ),
        (errno.EROFS, "is on a disk that cannot be written to. Copy the run folder to another one"),
        (errno.EIO, "cannot be made: a disk fails to read or to write. Test the disks"),
    ],
)
def test_disk_that_refuses_is_told_in_one_line(number, said, export, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gemma_ft.exporting.merging.merge.copy_tensor", refuse)
    with pytest.raises(ExportError, match=rf"merged {said}"):
        export()
    assert not list(tmp_path.glob("merged*"))


def write_until_full(destination, problem):
    with whole_folder(destination):
        raise problem


@pytest.mark.parametrize(
    ("problem", "free"),
    [
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), 10**9),
        (OSError("524288 requested and 45856 written"), 4096),
    ],
    ids=["safetensors", "numpy"],
)
def test_full_disk_is_told_where_a_library_has_lost_the_errors_number(problem, free, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - free, free))
    with pytest.raises(ExportError, match=r"gguf does not fit on its disk. Free some space."):
        write_until_full(tmp_path / "gguf", problem)
    assert not list(tmp_path.iterdir())


def test_error_of_another_kind_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match=r"524288 requested and 45856 written"):
        write_until_full(tmp_path / "gguf", OSError("524288 requested and 45856 written"))
