"""The build backend that pip and `build` call: setuptools' own, after llama.cpp's source has been unpacked.

In addition to what pyproject.toml requires, it requires only what this machine lacks: `unearth` if the source must be
fetched, CMake and ninja if they are not installed.
"""

from __future__ import annotations

from typing import Any

from setuptools import build_meta

import build_llama
import vendor

Settings = dict[str, Any] | None


def _fetching() -> list[str]:
    return ["unearth"] if vendor.needs_download() else []


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return _fetching()


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return _fetching() + build_llama.missing_tools()


get_requires_for_build_editable = get_requires_for_build_wheel


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    vendor.place()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings = None) -> str:
    vendor.place()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    vendor.place()
    return build_meta.build_sdist(sdist_directory, config_settings)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    vendor.place()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    vendor.place()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
