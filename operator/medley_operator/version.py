"""The version of this distribution, as installed."""

from __future__ import annotations

from importlib import metadata

try:
    VERSION = metadata.version("medley")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+source"
