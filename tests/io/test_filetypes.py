"""Files that are something else are named; files that are what they should be are not."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from iec.io.filetypes import is_safetensors, mistaken


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.ckpt"))
    return buffer.getvalue()


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
OTHERS = {
    "Git LFS pointer.*git lfs pull": POINTER,
    "web page.*leads to a page": b"<!DOCTYPE html><html>",
    "a web page": b"\xef\xbb\xbf\n<HTML lang=en>",
    "XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "gzip archive.*Unpack it": gzip.compress(b"x" * 99),
    "bzip2": bz2.compress(b"x"),
    "an xz": lzma.compress(b"x"),
    "a 7z": b"7z\xbc\xaf\x27\x1c\0\4",
    "tar archive": tar(),
    r"zip archive of model\.ckpt, readme": zipped("model.ckpt", "readme.txt"),
    r"zip archive of 0, 1, 2, \.\.\.": zipped(*"01234"),
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_files_are_named_with_the_way_out(message, tmp_path):
    (tmp_path / "x").write_bytes(OTHERS[message])
    sentence = mistaken(tmp_path / "x")
    assert sentence is not None and re.search(message, sentence) and f"x ({len(OTHERS[message])} bytes)" in sentence


def test_what_may_be_right_is_not_called_a_mistake(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "new.ckpt")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text('["<html> is a tag"]')
    (tmp_path / "empty").touch()
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    assert [path.name for path in tmp_path.iterdir() if mistaken(path)] == []
    assert [path.name for path in tmp_path.iterdir() if is_safetensors(path)] == ["a.safetensors"]


def test_an_archive_of_arrays_is_an_archive(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    assert "a zip archive of a.npy" in str(mistaken(tmp_path / "x.npz"))
