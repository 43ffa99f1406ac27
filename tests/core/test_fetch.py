"""Fetched files: checked, cached, and every failure told."""

import hashlib
import zipfile

import pytest

from core_jax.data import fetch
from core_jax.data.fetch import Address, Wheel, cache_folder, fetch_first, file_sha256
from core_jax.errors import DataError

CONTENT = b"some data"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WHEEL_NAME = "alignax_carried_data-1.0-py3-none-any.whl"


@pytest.fixture
def address(tmp_path):
    """A file that can be fetched."""
    (tmp_path / "origin.bin").write_bytes(CONTENT)
    url = (tmp_path / "origin.bin").as_uri()
    return Address(url=url, filename="data.bin", sha256=SHA256)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds in a folder, without any network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "alignax_carried_data-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL_NAME, "w") as archive:
        archive.writestr("carried/data.bin", CONTENT)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: alignax-carried-data\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Wheel(
        project="alignax-carried-data",
        version="1.0",
        filename=WHEEL_NAME,
        sha256=file_sha256(folder / WHEEL_NAME),
    )


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(fetch.CACHE_VARIABLE, str(tmp_path / "one" / "two"))
    assert cache_folder() == tmp_path / "one" / "two"
    assert cache_folder(tmp_path / "three") == tmp_path / "three"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be made.*ALIGNAX_CACHE"):
        cache_folder(tmp_path / "file" / "four")


def test_address_is_fetched_once(tmp_path, address):
    path = fetch_first([address], cache_dir=tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    (tmp_path / "origin.bin").unlink()
    assert fetch_first([address], cache_dir=tmp_path / "cache") == path
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["data.bin"]


def test_wheel_is_fetched_with_pip(tmp_path, wheel):
    path = fetch_first([wheel], cache_dir=tmp_path / "cache")
    with zipfile.ZipFile(path) as archive:
        assert archive.read("carried/data.bin") == CONTENT


def test_second_way_when_the_first_fails(tmp_path, wheel, address, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    path = fetch_first([wheel, address], cache_dir=tmp_path / "cache")
    assert path.name == "data.bin"


def test_damaged_cache_is_replaced(tmp_path, address):
    path = fetch_first([address], cache_dir=tmp_path / "cache")
    path.write_bytes(b"damaged")
    assert fetch_first([address], cache_dir=tmp_path / "cache").read_bytes() == CONTENT


def test_wrong_checksum_and_absent_file_are_told(tmp_path, address):
    (tmp_path / "origin.bin").write_bytes(b"something else")
    absent = Address(url=(tmp_path / "absent.bin").as_uri(), filename="absent.bin", sha256=SHA256)
    with pytest.raises(DataError, match="none of the known ways") as error:
        fetch_first([address, absent], cache_dir=tmp_path / "cache")
    assert f"SHA-256 {hashlib.sha256(b'something else').hexdigest()}, not {SHA256}" in str(
        error.value
    )
    assert "absent.bin' failed" in str(error.value)
    assert "by hand" in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []
