"""One door to local paths and s3://: paths, objects, retries, Parquet, one lock, one way to publish a directory whole."""

from registry.storage.paths import (
    Location,
    check_writable,
    copy_verified,
    is_remote,
    list_inputs,
    locked,
    open_input,
    open_root,
    sha256_of,
    sync_directory,
    translate_os_errors,
    work_directory,
    write_atomic,
)

__all__ = [
    "Location",
    "check_writable",
    "copy_verified",
    "is_remote",
    "list_inputs",
    "locked",
    "open_input",
    "open_root",
    "sha256_of",
    "sync_directory",
    "translate_os_errors",
    "work_directory",
    "write_atomic",
]
