import errno
import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from iec.errors import StoreError, WeightsError
from iec.io import download as module
from iec.io.download import fetch
from iec.models.cards import Original
from iec.models.checkpoints.source import download

DATA = bytes(range(256)) * 5000
SHA, MD5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(module, "PAUSE", 0.0)


@pytest.fixture
def server():
    """Serves ``data`` under ``tag``; ``cuts``: bytes after which the next answers break off, or stall while ``stalled`` is not set;
    ``ranges``: whether it knows Range; ``codes``: the next refusals; ``lie``: bytes that it goes on too early.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state = self.server
            wanted = self.headers.get("Range")
            state.requests.append((wanted, self.headers.get("If-Range")))
            if state.status or state.codes:
                self.send_error(state.status or state.codes.pop(0))
                return
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range") in (state.tag, *state.headers.values()):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(state.data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(state.data)}")
                    self.end_headers()
                    return
            first = start - state.lie if start else 0
            body = state.data[first:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {first}-{len(state.data) - 1}/{len(state.data)}")
            self.send_header("Content-Length", str(len(body)))
            for name, value in {"ETag": state.tag, **state.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)
            state.stalled.wait()

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.data, made.tag, made.cuts, made.ranges, made.status, made.requests = DATA, '"one"', [], True, None, []
    made.codes, made.lie, made.stalled = [], 0, threading.Event()
    made.headers = {}
    made.stalled.set()
    made.url = f"http://127.0.0.1:{made.server_port}/file.ckpt"
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_file_arrives_once_and_is_checked(server, tmp_path):
    path = fetch(server.url, tmp_path / "a" / "file.ckpt", sha256=SHA, md5=MD5)
    assert path.read_bytes() == DATA and [p.name for p in path.parent.iterdir()] == ["file.ckpt"]
    fetch(server.url, path, sha256=SHA)
    assert len(server.requests) == 1
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=f"7 bytes.*expected {SHA}"):
        fetch(server.url, path, sha256=SHA)


def test_a_broken_connection_is_resumed_where_it_broke(server, tmp_path):
    server.cuts = [300_000, 400_000]
    path = fetch(server.url, tmp_path / "file.ckpt", sha256=SHA)
    assert path.read_bytes() == DATA
    assert [wanted for wanted, _ in server.requests] == [None, "bytes=300000-", "bytes=700000-"]
    assert server.requests[1][1] == '"one"'


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_what_had_arrived_whole_is_kept_and_what_is_too_long_is_not(server, tmp_path, extra):
    """After the last byte and before the file is in place, a process may end; hashing gigabytes takes a while."""
    (tmp_path / "file.ckpt.part").write_bytes(DATA + extra)
    (tmp_path / "file.ckpt.part.tag").write_text(server.tag)
    assert fetch(server.url, tmp_path / "file.ckpt", sha256=SHA).read_bytes() == DATA
    assert len(server.requests) == (2 if extra else 1)
    assert [p.name for p in tmp_path.iterdir()] == ["file.ckpt"]


def test_a_later_call_goes_on_with_what_an_earlier_one_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.cuts = [500_000]
    with pytest.raises(WeightsError, match="500000 of 1280000.*same command goes on"):
        fetch(server.url, tmp_path / "file.ckpt", sha256=SHA)
    assert not (tmp_path / "file.ckpt").exists()
    assert fetch(server.url, tmp_path / "file.ckpt", sha256=SHA).read_bytes() == DATA
    assert server.requests[-1][0] == "bytes=500000-"


def test_a_file_that_changed_meanwhile_is_not_glued_together(server, tmp_path):
    server.cuts = [300_000]
    (tmp_path / "file.ckpt.part").write_bytes(b"x" * 1000)
    (tmp_path / "file.ckpt.part.tag").write_text('"an older one"')
    server.cuts = []
    assert fetch(server.url, tmp_path / "file.ckpt", sha256=SHA).read_bytes() == DATA
    assert server.requests[0][1] == '"an older one"'


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges, server.cuts = False, [300_000]
    assert fetch(server.url, tmp_path / "file.ckpt", sha256=SHA).read_bytes() == DATA


def test_another_file_than_expected_leaves_nothing_behind(server, tmp_path):
    server.data = DATA[:-1] + b"!"
    with pytest.raises(WeightsError, match=rf"1280000 bytes.*expected {MD5}"):
        fetch(server.url, tmp_path / "file.ckpt", md5=MD5)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_a_part_that_the_next_one_completes(server, tmp_path):
    """SIGKILL while the server has sent some and stalls."""
    server.cuts, path = [400_000], tmp_path / "file.ckpt"
    server.stalled.clear()
    code = f"import pathlib, iec.io.download as d; d.BLOCK = 2**16; d.fetch({server.url!r}, pathlib.Path({str(path)!r}))"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        part = tmp_path / "file.ckpt.part"
        while process.poll() is None and not (part.is_file() and part.stat().st_size):
            threading.Event().wait(0.02)
        process.kill()
    arrived = part.stat().st_size
    server.stalled.set()
    assert 0 < arrived <= 400_000 and not path.exists()
    assert fetch(server.url, path, sha256=SHA).read_bytes() == DATA
    assert server.requests[-1] == (f"bytes={arrived}-", server.tag)


def test_a_server_that_goes_on_elsewhere_is_not_believed(server, tmp_path):
    (tmp_path / "file.ckpt.part").write_bytes(DATA[:1000])
    (tmp_path / "file.ckpt.part.tag").write_text(server.tag)
    server.lie = 10
    assert fetch(server.url, tmp_path / "file.ckpt", sha256=SHA).read_bytes() == DATA
    assert [wanted for wanted, _ in server.requests] == ["bytes=1000-", None]


def test_a_full_disk_is_not_taken_for_a_broken_connection(server, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(StoreError, match="Cannot write .*file.ckpt: No space left.*free space"):
        fetch(server.url, tmp_path / "file.ckpt", sha256=SHA)
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [408, 429, 500])
def test_a_passing_refusal_is_tried_again(server, tmp_path, code):
    server.codes = [code]
    assert fetch(server.url, tmp_path / "file.ckpt", sha256=SHA).read_bytes() == DATA


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 5)])
def test_a_refusal_says_what_to_do(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(WeightsError, match=f"answers {status}.*by hand: .*file.ckpt") as error:
        fetch(server.url, tmp_path / "file.ckpt")
    assert len(server.requests) == requests
    assert ("its licence accepted" in str(error.value)) == (status == 403)


def test_a_server_that_does_not_answer_is_named_with_the_reason(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(WeightsError, match=r"file\.ckpt could not be fetched \(\[Errno \d+\] Connection refused\)"):
        fetch(server.url, tmp_path / "file.ckpt")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "IEC_OFFLINE"])
def test_offline_opens_no_connection(server, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(WeightsError, match=rf"{variable}.*forbids fetching.*by hand"):
        fetch(server.url, tmp_path / "file.ckpt")
    assert not server.requests


def test_an_archive_keeps_its_own_name_and_is_not_held_to_the_checkpoints_hash(server, tmp_path):
    inside = Original(
        "ldm", "models/x/model.ckpt", server.url.replace("file.ckpt", "x.zip?dl=1"), True, "model.ckpt", sha256="0" * 64
    )
    assert download(inside, tmp_path).name == "x.zip"
    plain = Original("ddpm", "models/x/model-1.ckpt", server.url, False, md5=MD5)
    assert download(plain, tmp_path).name == "model-1.ckpt"


def test_where_the_tag_is_weak_the_date_vouches(server, tmp_path):
    server.tag, server.headers, server.cuts = 'W/"one"', {"Last-Modified": "Thu, 26 Nov 2026 08:00:00 GMT"}, [10]
    assert fetch(server.url, tmp_path / "file.ckpt", sha256=SHA, md5=MD5).read_bytes() == DATA
    assert server.requests[1] == ("bytes=10-", server.headers["Last-Modified"])
