"""All access to local paths and s3://: paths, objects, retries, Parquet, the file lock, directories published whole."""

from registry.storage.lock import file_lock
from registry.storage.paths import (
    Location,
    check_writable,
    copy_verified,
    is_remote,
    list_inputs,
    open_input,
    open_root,
    sha256_of,
    sync_directory,
    translate_os_errors,
    work_directory,
    write_atomic,
)
from registry.storage.publish import (
    new_directory,
    publish_directory,
    read_marker,
    write_marker,
)

__all__ = [
    "Location",
    "check_writable",
    "copy_verified",
    "file_lock",
    "is_remote",
    "list_inputs",
    "new_directory",
    "open_input",
    "open_root",
    "publish_directory",
    "read_marker",
    "sha256_of",
    "sync_directory",
    "translate_os_errors",
    "work_directory",
    "write_atomic",
    "write_marker",
]
