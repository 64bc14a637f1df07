"""Fetching a record's file from a server on this machine: complete, resumed, checked, or refused with a way out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from mobilevitv2.errors import DownloadError
from mobilevitv2.weights import cache_path, download, fetch, get_record
from mobilevitv2.weights.records import WeightRecord

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 2000


@dataclass
class Server:
    """What the server has, what it does wrong, and what it was asked."""

    content: bytes = CONTENT
    etag: str = '"one"'
    status: int = 200
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers breaks off."""
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of each request."""
    url: str = ""


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.ranges.append(wanted)
            if server.status != 200:
                self.send_error(server.status)
                return
            start = 0
            if wanted and self.headers.get("If-Range") == server.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(server.content):
                    self.send_error(416)
                    return
            body = server.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if server.etag:
                self.send_header("ETag", server.etag)
            self.end_headers()
            self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

        def log_message(self, format: str, *args: object) -> None:
            """The tests' output stays readable."""

    return Handler


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    state.url = f"http://127.0.0.1:{http.server_port}/weights/model.pt"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def record(server: Server) -> WeightRecord:
    return replace(get_record("mobilevitv2-0.5-imagenet1k-256"), url=server.url, sha256=None)


def left_in_cache(record: WeightRecord) -> list[str]:
    return sorted(path.name for path in cache_path(record).parent.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_fetched_once(record: WeightRecord, server: Server) -> None:
    file = fetch(record)
    assert file == Path(constants.HF_HUB_CACHE) / "mobilevitv2" / "mobilevitv2-0.5-imagenet1k-256.pt"
    assert file.read_bytes() == CONTENT
    assert left_in_cache(record) == [file.name]
    assert fetch(record) == file
    assert len(server.ranges) == 1
    server.content = CONTENT + b"new"
    assert fetch(record, force=True).read_bytes() == CONTENT + b"new"


def test_a_cut_connection_is_taken_up_at_once(record: WeightRecord, server: Server) -> None:
    server.cuts = [1000, 5000]
    assert fetch(record).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=6000-"]


def test_a_cut_download_goes_on_at_the_next_call(record: WeightRecord, server: Server) -> None:
    server.cuts = [1000] + [0] * download.TRIES
    with pytest.raises(DownloadError, match=r"could not be downloaded.*1,000 bytes are kept for the next try") as caught:
        fetch(record)
    assert server.url in str(caught.value)
    assert str(cache_path(record)) in str(caught.value)
    assert not cache_path(record).exists()
    server.cuts, server.ranges = [], []
    assert fetch(record).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]
    assert left_in_cache(record) == [cache_path(record).name]


def test_a_file_that_changed_meanwhile_comes_whole(record: WeightRecord, server: Server) -> None:
    server.cuts = [1000] + [0] * download.TRIES
    with pytest.raises(DownloadError):
        fetch(record)
    server.cuts, server.etag, server.content = [], '"two"', CONTENT[::-1]
    assert fetch(record).read_bytes() == CONTENT[::-1]


def test_without_a_version_nothing_is_glued(record: WeightRecord, server: Server) -> None:
    server.etag, server.cuts = "", [1000]
    assert fetch(record).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_server_that_always_breaks_off_somewhere_is_given_up(record: WeightRecord, server: Server) -> None:
    server.etag, server.cuts = "", [2000, 1000] * 50  # without a version every try starts anew, so none gets any further
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch(record)
    assert len(server.ranges) < 10


def test_a_part_longer_than_the_file_is_thrown_away(record: WeightRecord, server: Server) -> None:
    server.cuts = [1000] + [0] * download.TRIES
    with pytest.raises(DownloadError):
        fetch(record)
    server.cuts, server.content = [], CONTENT[:500]
    assert fetch(record).read_bytes() == CONTENT[:500]


def test_a_right_checksum_passes(record: WeightRecord) -> None:
    assert fetch(replace(record, sha256=hashlib.sha256(CONTENT).hexdigest())).read_bytes() == CONTENT


def test_a_wrong_checksum_is_kept_aside_and_not_installed(record: WeightRecord) -> None:
    wrong = replace(record, sha256="0" * 64)
    with pytest.raises(DownloadError, match="sha256") as caught:
        fetch(wrong)
    aside = cache_path(record).with_name(f"{cache_path(record).name}.wrong")
    assert str(aside) in str(caught.value)
    assert aside.read_bytes() == CONTENT
    assert left_in_cache(record) == [aside.name]


def test_a_missing_file_names_url_and_remedy(record: WeightRecord, server: Server) -> None:
    server.status = 404
    with pytest.raises(DownloadError) as caught:
        fetch(record)
    message = str(caught.value)
    assert f"{server.url} answered 404" in message
    assert f"put it at {cache_path(record)}" in message
    assert "pass the file's path" in message
    assert len(server.ranges) == 1
    assert left_in_cache(record) == []


@pytest.mark.parametrize(("content", "what"), [(b"<!DOCTYPE html><p>Please log in", "a web page"), (b"", "nothing")])
def test_a_login_page_is_no_file(record: WeightRecord, server: Server, content: bytes, what: str) -> None:
    server.content = content
    with pytest.raises(DownloadError, match=f"gave {what} instead of mobilevitv2-0.5-imagenet1k-256"):
        fetch(record)
    assert not cache_path(record).exists()


def test_no_server_at_all(record: WeightRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = replace(record, url="http://127.0.0.1:9/model.pt")
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/model.pt could not be downloaded"):
        fetch(nobody)


def test_offline_uses_the_cache_and_asks_nobody(record: WeightRecord, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set.*put it at"):
        fetch(record)
    cache_path(record).parent.mkdir(parents=True)
    cache_path(record).write_bytes(b"by hand")
    assert fetch(record).read_bytes() == b"by hand"
    assert server.ranges == []


def test_a_file_address(record: WeightRecord, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(CONTENT)
    local = replace(record, url=(tmp_path / "weights.safetensors").as_uri())
    assert fetch(local).name == "mobilevitv2-0.5-imagenet1k-256.safetensors"
    assert fetch(local).read_bytes() == CONTENT


@pytest.mark.parametrize("url", [None, "ftp://example.org/model.pt", "/etc/passwd"])
def test_other_addresses_are_refused(record: WeightRecord, url: str | None) -> None:
    with pytest.raises(DownloadError, match="pass the path of its file"):
        fetch(replace(record, url=url))


def test_a_checkpoint_in_the_package_is_where_it_is(record: WeightRecord, tmp_path: Path) -> None:
    assert fetch(replace(record, path=tmp_path)) == tmp_path


def test_a_cache_that_cannot_be_written(record: WeightRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"could not be stored in .*HF_HOME"):
        fetch(record)


def test_two_at_a_time_download_once(record: WeightRecord, server: Server) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(record).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert len(server.ranges) == 1


def test_no_progress_bar_unless_a_terminal_looks(record: WeightRecord, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(record, progress=True)
    assert capsys.readouterr() == ("", "")
