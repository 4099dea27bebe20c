"""Objects in S3 as the part of `pathlib.Path` that readers use, and the few writes that a commit is made of.

    place = S3Path.parse("s3://bucket/registry") / "snapshots"
    place.open()                    seekable; ranged reads of one version of the object, each of the length asked for
    place.upload(file, sha256)      stored unless it is there; what was stored is compared afterwards
    place.replace(data, etag)       compare-and-swap: whoever loses is told

Point reads fetch what is asked for and 64 KiB, sequential ones up to 8 MiB at once. Faults are `registry.storage.retries`'.
An upload that is killed can leave parts that S3 keeps and bills: a lifecycle rule (AbortIncompleteMultipartUpload) for
the bucket removes them.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from registry.errors import ServiceError, UsageError
from registry.storage.retries import Precondition, changed, client, request, retried

SCHEME = "s3://"
PART_BYTES = 16 << 20  # an object up to this size is sent at once; larger ones in parts of it
_MAX_PARTS = 10_000  # S3's limit
_READ_AHEAD_BYTES = 64 << 10  # the footer of most Parquet files
_MAX_READ_AHEAD_BYTES = 8 << 20
_BODY_BYTES = 256 << 10  # of an answer, taken at once


@dataclasses.dataclass(frozen=True)
class Stat:
    """Of an object, named as `os.stat_result` does; `etag` names its version."""

    st_size: int
    st_mtime: float
    etag: str
    sha256: str | None  # as the store tells it, in base64: of the object, or over the hashes of its parts


@dataclasses.dataclass(frozen=True, order=True)
class S3Path:
    """An object, or a prefix of objects. Making one asks for nothing; it can be pickled."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> S3Path:
        """`s3://bucket/key`, without a trailing slash.

        Raises:
            UsageError: there is no bucket in it.
        """
        bucket, _, key = uri.removeprefix(SCHEME).partition("/")
        if not uri.startswith(SCHEME) or not bucket:
            raise UsageError(f"{uri!r}: expected s3://BUCKET/PREFIX")
        return cls(bucket, key.strip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> S3Path:
        return S3Path(self.bucket, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """The last part of the key; of a bucket, its name."""
        return self.parts[-1]

    @property
    def parts(self) -> tuple[str, ...]:
        """`("s3://", bucket, ...)`."""
        return (SCHEME, self.bucket, *filter(None, self.key.split("/")))

    @property
    def _place(self) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key}

    def stat(self) -> Stat:
        """Its size and version.

        Raises:
            FileNotFoundError: there is no such object.
        """
        head = request(self, "head_object", **self._place, ChecksumMode="ENABLED")
        told = head.get("ChecksumSHA256", "").partition("-")[0]  # "-3" says of three parts; some stores leave it out
        return Stat(head["ContentLength"], head["LastModified"].timestamp(), head["ETag"], told or None)

    def is_file(self) -> bool:
        """Whether there is such an object."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def open(self, mode: str = "rb") -> BinaryIO:
        """The object as it now is, for reading; seekable, and holds no connection.

        Raises:
            FileNotFoundError: there is no such object.
        """
        assert mode == "rb", mode
        return cast(BinaryIO, _Ranges(self, self.stat()))

    def read_bytes(self) -> bytes:
        """A small object's content."""
        found = self.fetch()
        if found is None:
            self.stat()  # raises, unless it came meanwhile
            return self.read_bytes()
        return found[0]

    def fetch(self) -> tuple[bytes, str] | None:
        """A small object's content and its ETag; None if there is none."""

        def attempt() -> tuple[bytes, str]:
            answer = client().get_object(**self._place)
            data = answer["Body"].read()
            if len(data) != answer["ContentLength"]:
                raise EOFError(f"{len(data)} of {answer['ContentLength']} bytes came")
            return data, answer["ETag"]

        try:
            return retried(self, attempt)
        except FileNotFoundError:
            return None

    def replace(self, data: bytes, etag: str | None) -> bool:
        """Stores `data` if the object is still the one of `etag` (None: still absent); returns whether it is there.

        An answer that was lost makes the second attempt look like a lost race, so the content decides.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            request(self, "put_object", **self._place, Body=data, **condition, ChecksumSHA256=_base64(data))
        except (Precondition, FileNotFoundError):
            found = self.fetch()
            return found is not None and found[0] == data
        return True

    def delete(self) -> None:
        """Deletes the object; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            request(self, "delete_object", **self._place)

    def keeps(self, data: bytes) -> bool:
        """Whether the store refuses to replace this object, whose content is `data`, when told not to."""
        try:
            request(self, "put_object", **self._place, Body=data, IfNoneMatch="*", ChecksumSHA256=_base64(data))
        except Precondition:
            return True
        return False

    def folders(self) -> list[str]:
        """The names one level below, that have more below them."""
        pages = self._pages(Delimiter="/")
        return [entry["Prefix"].split("/")[-2] for page in pages for entry in page.get("CommonPrefixes", ())]

    def walk(self) -> Iterator[tuple[S3Path, int]]:
        """Every object below, with its size, in the order of keys; not the empty ones that stand for folders."""
        for page in self._pages():
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield S3Path(self.bucket, entry["Key"]), entry["Size"]

    def has_any(self) -> bool:
        """Whether an object is below. Raises a ServiceError if the bucket does not exist."""
        return bool(next(self._pages(MaxKeys=1)).get("Contents"))

    def _pages(self, **options: Any) -> Iterator[dict[str, Any]]:
        prefix = f"{self.key}/" if self.key else ""
        while True:
            page = request(self, "list_objects_v2", Bucket=self.bucket, Prefix=prefix, **options)
            yield page
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def upload(self, source: Path, sha256: str) -> None:
        """Stores a file, unless the object is it already; then compares what is stored.

        Raises:
            ServiceError: it cannot be stored, or what is stored is not what was sent.
        """
        if self.holds(source, sha256):
            return
        size = source.stat().st_size
        if size <= _part_bytes(size):
            data = source.read_bytes()
            request(self, "put_object", **self._place, Body=data, ChecksumSHA256=_base64(data))
        else:
            self._send_parts(source, _part_bytes(size))
        if not self.holds(source, sha256):
            raise ServiceError(f"{self}: what is stored is not what was sent; run the same command again")

    def holds(self, file: Path, sha256: str) -> bool:
        """Whether the object has the content of a local file: by the store's own checksum, else by reading it back.

        Args:
            file: the local file.
            sha256: its SHA-256, 64 hex digits.
        """
        size = file.stat().st_size
        try:
            stat = self.stat()
            if stat.st_size != size:
                return False
            if size <= _part_bytes(size):
                checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
            else:
                checksum = _composite(file, _part_bytes(size))
            if stat.sha256 == checksum:
                return True
            return hashlib.file_digest(_Ranges(self, stat), "sha256").hexdigest() == sha256
        except FileNotFoundError:
            return False

    def _send_parts(self, source: Path, part_bytes: int) -> None:
        begun = request(self, "create_multipart_upload", **self._place, ChecksumAlgorithm="SHA256")
        upload = {**self._place, "UploadId": begun["UploadId"]}
        try:
            parts = [self._send_part(upload, number, data) for number, data in _pieces(source, part_bytes)]
            request(self, "complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError:
            return  # no such upload: it was completed, and the answer lost. What is stored is compared next
        except BaseException:
            with contextlib.suppress(Exception):
                client().abort_multipart_upload(**upload)
            raise

    def _send_part(self, upload: dict[str, str], number: int, data: bytes) -> dict[str, Any]:
        checksum = _base64(data)
        sent = request(self, "upload_part", **upload, PartNumber=number, Body=data, ChecksumSHA256=checksum)
        return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": checksum}


class _Ranges(io.RawIOBase):
    """One version of an object, by ranged reads; what is read in sequence is fetched in growing pieces.

    Every request names the ETag that the object had when it was opened, so its parts are of one version.
    """

    def __init__(self, path: S3Path, stat: Stat) -> None:
        self._path, self._size, self._etag = path, stat.st_size, stat.etag
        self._position = 0
        self._start, self._held = 0, b""
        self._ahead = _READ_AHEAD_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self._path}: seek before its start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` whole, unless the end is before: so `read(n)` gives n bytes, as of a buffered file."""
        target = memoryview(buffer).cast("B")
        wanted = max(0, min(len(target), self._size - self._position))
        filled = 0
        while filled < wanted:
            offset = self._position - self._start
            if not 0 <= offset < len(self._held):
                self._fill(wanted - filled)
                offset = 0
            data = memoryview(self._held)[offset : offset + wanted - filled]
            target[filled : filled + len(data)] = data
            self._position += len(data)
            filled += len(data)
        return filled

    def _fill(self, wanted: int) -> None:
        is_sequential = self._held and self._position == self._start + len(self._held)
        self._ahead = min(2 * self._ahead, _MAX_READ_AHEAD_BYTES) if is_sequential else _READ_AHEAD_BYTES
        end = min(self._position + max(wanted, self._ahead), self._size)
        self._start, self._held = self._position, self._range(self._position, end)

    def _range(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end` (exclusive); an attempt goes on at the byte where the last was cut."""
        data = bytearray()

        def attempt() -> None:
            place = {"Range": f"bytes={start + len(data)}-{end - 1}", "IfMatch": self._etag}
            answer = client().get_object(Bucket=self._path.bucket, Key=self._path.key, **place)
            if not answer.get("ContentRange", "").startswith(f"bytes {start + len(data)}-"):
                raise ServiceError(f"{self._path}: this store does not give ranges of objects, which readers need")
            while piece := answer["Body"].read(_BODY_BYTES):
                data.extend(piece)
            if len(data) < end - start:
                raise EOFError(f"{len(data)} of {end - start} bytes came")

        try:
            retried(self._path, attempt)
        except Precondition:
            raise changed(self._path) from None
        return bytes(data[: end - start])


def _part_bytes(size: int) -> int:
    """Bytes of each part of an object of `size` bytes; one that is no larger than a part is sent whole."""
    return max(PART_BYTES, -(-size // _MAX_PARTS))


def _base64(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _pieces(source: Path, part_bytes: int) -> Iterator[tuple[int, bytes]]:
    with source.open("rb") as file:
        number = 0
        while data := file.read(part_bytes):
            number += 1
            yield number, data


def _composite(source: Path, part_bytes: int) -> str:
    """S3's checksum of an object sent in parts: over the parts' hashes."""
    return _base64(b"".join(hashlib.sha256(data).digest() for _, data in _pieces(source, part_bytes)))
