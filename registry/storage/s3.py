"""Objects in S3 with those methods of `pathlib.Path` that readers use, and the few writes that a commit needs.

    path = S3Path.parse("s3://bucket/registry") / "snapshots"
    path.open()                     seekable; ranged reads of one version of the object, each of the requested length
    path.upload(file, sha256)       stores the file unless it is stored already, and compares it afterwards
    path.replace(data, etag)        compare-and-swap; returns whether it succeeded

Point reads fetch at least 64 KiB, sequential reads up to 8 MiB at once. `registry.storage.retries` handles faults.
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
PART_BYTES = 16 << 20  # an object up to this size is sent at once, a larger one in parts of this size
_MAX_PARTS = 10_000  # S3's limit
_READ_AHEAD_BYTES = 64 << 10  # the footer of most Parquet files
_MAX_READ_AHEAD_BYTES = 8 << 20
_BODY_BYTES = 256 << 10  # of a response body, read at once


@dataclasses.dataclass(frozen=True)
class Stat:
    """The size and version of an object, with the field names of `os.stat_result`; `etag` identifies the version."""

    st_size: int
    st_mtime: float
    etag: str
    sha256: str | None  # as the store reports it, in base64: of the object, or of the hashes of its parts


@dataclasses.dataclass(frozen=True, order=True)
class S3Path:
    """An object, or a prefix of objects. Creating one sends no request; it can be pickled."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> S3Path:
        """Parse `s3://bucket/key`; a trailing slash is dropped.

        Raises:
            UsageError: the URI has no bucket.
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
        """The last part of the key; for a bucket, its name."""
        return self.parts[-1]

    @property
    def parts(self) -> tuple[str, ...]:
        """`("s3://", bucket, ...)`."""
        return (SCHEME, self.bucket, *filter(None, self.key.split("/")))

    @property
    def _address(self) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key}

    def stat(self) -> Stat:
        """Return its size and version.

        Raises:
            FileNotFoundError: there is no such object.
        """
        head = request(self, "head_object", **self._address, ChecksumMode="ENABLED")
        # A suffix "-3" means three parts; some stores omit it.
        checksum = head.get("ChecksumSHA256", "").partition("-")[0]
        return Stat(head["ContentLength"], head["LastModified"].timestamp(), head["ETag"], checksum or None)

    def is_file(self) -> bool:
        """Return whether there is such an object."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the present version of the object for reading; seekable, and holds no connection.

        Raises:
            FileNotFoundError: there is no such object.
        """
        assert mode == "rb", mode
        return cast(BinaryIO, _Ranges(self, self.stat()))

    def read_bytes(self) -> bytes:
        """Return a small object's content.

        Raises:
            FileNotFoundError: there is no such object.
        """
        found = self.fetch()
        if found is None:
            self.stat()  # raises, unless the object was created meanwhile
            return self.read_bytes()
        return found[0]

    def fetch(self) -> tuple[bytes, str] | None:
        """Return a small object's content and its ETag; None if there is no such object."""

        def attempt() -> tuple[bytes, str]:
            response = client().get_object(**self._address)
            data = response["Body"].read()
            if len(data) != response["ContentLength"]:
                raise EOFError(f"received {len(data)} of {response['ContentLength']} bytes")
            return data, response["ETag"]

        try:
            return retried(self, attempt)
        except FileNotFoundError:
            return None

    def replace(self, data: bytes, etag: str | None) -> bool:
        """Store `data` if the object still has `etag` (None: is still absent), and return whether `data` is stored.

        After a lost response the second attempt looks like a lost race, so the stored content is compared.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            request(self, "put_object", **self._address, Body=data, **condition, ChecksumSHA256=_base64(data))
        except (Precondition, FileNotFoundError):
            found = self.fetch()
            return found is not None and found[0] == data
        return True

    def delete(self) -> None:
        """Delete the object, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            request(self, "delete_object", **self._address)

    def keeps(self, data: bytes) -> bool:
        """Return whether the store refuses to replace this object, with content `data`, under If-None-Match."""
        try:
            request(self, "put_object", **self._address, Body=data, IfNoneMatch="*", ChecksumSHA256=_base64(data))
        except Precondition:
            return True
        return False

    def folders(self) -> list[str]:
        """Return the names one level below that have objects below them."""
        pages = self._pages(Delimiter="/")
        return [entry["Prefix"].split("/")[-2] for page in pages for entry in page.get("CommonPrefixes", ())]

    def walk(self) -> Iterator[tuple[S3Path, int]]:
        """Yield every object below, with its size, in the order of keys; objects that stand for folders are skipped."""
        for page in self._pages():
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield S3Path(self.bucket, entry["Key"]), entry["Size"]

    def has_any(self) -> bool:
        """Return whether there is an object below.

        Raises:
            ServiceError: the bucket does not exist.
        """
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
        """Store a file, unless the object has its content already, and compare the stored object.

        Raises:
            ServiceError: it cannot be stored, or the stored object differs from the file.
        """
        if self.holds(source, sha256):
            return
        size = source.stat().st_size
        if size <= _part_bytes(size):
            data = source.read_bytes()
            request(self, "put_object", **self._address, Body=data, ChecksumSHA256=_base64(data))
        else:
            self._send_parts(source, _part_bytes(size))
        if not self.holds(source, sha256):
            raise ServiceError(f"{self}: the stored object is not what was sent; run the same command again")

    def holds(self, file: Path, sha256: str) -> bool:
        """Return whether the object has a local file's content, by the store's checksum, else by reading the object.

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
        begun = request(self, "create_multipart_upload", **self._address, ChecksumAlgorithm="SHA256")
        upload = {**self._address, "UploadId": begun["UploadId"]}
        try:
            parts = [self._send_part(upload, number, data) for number, data in _pieces(source, part_bytes)]
            request(self, "complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError:
            return  # no such upload: it was completed and the response lost; the stored object is compared next
        except BaseException:
            with contextlib.suppress(Exception):
                client().abort_multipart_upload(**upload)
            raise

    def _send_part(self, upload: dict[str, str], number: int, data: bytes) -> dict[str, Any]:
        checksum = _base64(data)
        sent = request(self, "upload_part", **upload, PartNumber=number, Body=data, ChecksumSHA256=checksum)
        return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": checksum}


class _Ranges(io.RawIOBase):
    """A file object for one version of an object, by ranged reads; sequential reads fetch pieces of growing size.

    Every request names the ETag that the object had when it was opened, so all pieces are of one version.
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
        """Fill `buffer`, up to the end of the object: `read(n)` returns n bytes, as for a buffered file."""
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
        """Return the bytes from `start` to `end` (exclusive); a retry continues where the last attempt ended."""
        data = bytearray()

        def attempt() -> None:
            part = {"Range": f"bytes={start + len(data)}-{end - 1}", "IfMatch": self._etag}
            response = client().get_object(Bucket=self._path.bucket, Key=self._path.key, **part)
            if not response.get("ContentRange", "").startswith(f"bytes {start + len(data)}-"):
                raise ServiceError(f"{self._path}: this store does not support range requests, which readers need")
            while piece := response["Body"].read(_BODY_BYTES):
                data.extend(piece)
            if len(data) < end - start:
                raise EOFError(f"received {len(data)} of {end - start} bytes")

        try:
            retried(self._path, attempt)
        except Precondition:
            raise changed(self._path) from None
        return bytes(data[: end - start])


def _part_bytes(size: int) -> int:
    """Return the part size in bytes for an object of `size` bytes; an object no larger than a part is sent whole."""
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
    """Return S3's checksum of an object sent in parts: the SHA-256 of the parts' hashes."""
    return _base64(b"".join(hashlib.sha256(data).digest() for _, data in _pieces(source, part_bytes)))
