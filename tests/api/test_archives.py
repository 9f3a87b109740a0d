"""Archives of strangers. Each hostile one here was a way to write elsewhere, to fill the disk, or to run code."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.archives import Limits, unpack
from limbeck.errors import InvalidArchive

GOOD = {"config.json": b"{}", "model.safetensors": b"\x08" * 100, "sub/vocab.txt": b"a\nb\n"}
LIMITS = Limits(bytes=1_000_000, files=20)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(files: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in extra:
            archive.addfile(entry)
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Unpacks bytes, and afterwards looks that nothing was written outside of the folder."""
    folder = tmp_path / "box" / "out"
    folder.mkdir(parents=True)

    def run(content: bytes, limits: Limits = LIMITS) -> Path:
        archive = tmp_path / "box" / "upload"
        archive.write_bytes(content)
        return unpack(archive, "model.zip", folder, limits)

    yield run
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box"]
    assert {path.name for path in (tmp_path / "box").iterdir()} <= {"out", "upload"}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_files_come_out_as_they_went_in(opened: Callable[..., Path], pack: Callable[..., bytes]) -> None:
    assert contents(opened(pack(GOOD))) == GOOD


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_single_top_folder_is_stripped(opened: Callable[..., Path], pack: Callable[..., bytes]) -> None:
    assert contents(opened(pack({f"my-model/{name}": content for name, content in GOOD.items()}))) == GOOD


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_what_operating_systems_leave_behind_is_passed_over(
    opened: Callable[..., Path], pack: Callable[..., bytes]
) -> None:
    clutter = {"__MACOSX/._config.json": b"x", ".DS_Store": b"x", "._model.safetensors": b"x"}
    assert contents(opened(pack({"m/config.json": b"{}"} | {f"m/{name}": x for name, x in clutter.items()}))) == {
        "config.json": b"{}"
    }


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "..",
        "..\\evil",
        "C:/evil",
        "C:\\evil",
        "a" * 300,
        "/".join("abcdefghijkl"),
        "new\nline",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(
    opened: Callable[..., Path], pack: Callable[..., bytes], name: str
) -> None:
    with pytest.raises(InvalidArchive):
        opened(pack({"config.json": b"{}", name: b"evil"}))


@pytest.mark.parametrize(
    "entry",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "config.json"),
        special("hard", tarfile.LNKTYPE, "config.json"),
        special("device", tarfile.CHRTYPE),
        special("disk", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda entry: f"{entry.name}-{entry.linkname}",
)
def test_links_and_devices_in_a_tar_are_refused(opened: Callable[..., Path], entry: tarfile.TarInfo) -> None:
    with pytest.raises(InvalidArchive, match="link, a device"):
        opened(tarred({"config.json": b"{}"}, entry))


def test_a_symbolic_link_in_a_zip_is_refused(opened: Callable[..., Path]) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InvalidArchive, match="link, a device"):
        opened(out.getvalue())


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "rng_state.pth", "x.PKL", "model.ckpt"])
def test_pickles_are_refused_by_their_names(opened: Callable[..., Path], pack: Callable[..., bytes], name: str) -> None:
    with pytest.raises(InvalidArchive, match=r"pickle.*safetensors"):
        opened(pack({"config.json": b"{}", name: b"weights"}))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_another_name_is_refused(opened: Callable[..., Path], protocol: int) -> None:
    with pytest.raises(InvalidArchive, match="pickle"):
        opened(zipped({"model.safetensors": pickle.dumps({"a": 1}, protocol)}))


def test_a_torch_checkpoint_under_another_name_is_refused(opened: Callable[..., Path]) -> None:
    with pytest.raises(InvalidArchive, match="pickle"):
        opened(tarred({"model.safetensors": zipped({"archive/data.pkl": b"x"})}))


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb_is_stopped_at_the_limit_and_not_after_it(
    opened: Callable[..., Path], pack: Callable[..., bytes], tmp_path: Path
) -> None:
    with pytest.raises(InvalidArchive, match="unpacks to more than 1000000 bytes"):
        opened(pack({"config.json": b"{}", "zeros.txt": bytes(20_000_000)}))
    written = sum(path.stat().st_size for path in (tmp_path / "box" / "out").rglob("*") if path.is_file())
    assert written <= LIMITS.bytes


def test_a_zip_that_understates_its_sizes_is_counted_as_it_comes_out(opened: Callable[..., Path]) -> None:
    content = bytearray(zipped({"zeros.txt": bytes(3_000_000)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, 10)
    with pytest.raises(InvalidArchive):
        opened(bytes(content))


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_too_many_files_are_refused(opened: Callable[..., Path], pack: Callable[..., bytes]) -> None:
    with pytest.raises(InvalidArchive, match="more than 20 files"):
        opened(pack({f"{number}.txt": b"" for number in range(21)}))


def test_a_zip_with_a_huge_directory_is_refused_before_it_is_read(opened: Callable[..., Path]) -> None:
    content = zipped({f"{number}.txt": b"" for number in range(5_000)})
    tracemalloc.start()
    with pytest.raises(InvalidArchive):
        opened(content)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_tar_header_of_a_gigabyte_is_never_read_into_memory(opened: Callable[..., Path]) -> None:
    entry = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    entry.size = 1 << 30
    compressor = zlib.compressobj(9, wbits=31)
    content = compressor.compress(entry.tobuf(tarfile.GNU_FORMAT)) + compressor.compress(bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(InvalidArchive, match="1 MiB"):
        opened(content + compressor.flush())
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_the_same_path_twice_is_refused(opened: Callable[..., Path], pack: Callable[..., bytes]) -> None:
    with pytest.raises(InvalidArchive, match="twice"):
        opened(pack({"config.json": b"{}", "./config.json": b"[]", "a": b""}))


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_path_that_is_both_file_and_folder_is_refused(
    opened: Callable[..., Path], pack: Callable[..., bytes]
) -> None:
    with pytest.raises(InvalidArchive):
        opened(pack({"a": b"x", "a/b": b"y"}))


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
def test_a_cut_archive_is_refused(opened: Callable[..., Path], pack: Callable[..., bytes], keep: float) -> None:
    content = pack({name: os.urandom(3_000) for name in ("a.json", "b.json", "c.json")})
    with pytest.raises(InvalidArchive):
        opened(content[: int(len(content) * keep)])


def test_a_damaged_tar_is_refused_and_not_taken_for_a_shorter_one(opened: Callable[..., Path]) -> None:
    content = bytearray(tarred({name: os.urandom(3_000) for name in ("a.json", "b.json", "c.json")}))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(InvalidArchive):
        opened(bytes(content))


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"not an archive", b"\x1f\x8b", zipped({}), tarred({})],
    ids=["nothing", "zip's first bytes", "text", "gzip's first bytes", "empty zip", "empty tar"],
)
def test_what_is_no_archive_or_empty_is_refused(opened: Callable[..., Path], content: bytes) -> None:
    with pytest.raises(InvalidArchive):
        opened(content)


def test_an_encrypted_zip_is_refused(opened: Callable[..., Path]) -> None:
    content = bytearray(zipped({"config.json": b"{}"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    with pytest.raises(InvalidArchive, match="cannot be read"):
        opened(bytes(content))
