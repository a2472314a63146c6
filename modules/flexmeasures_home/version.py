"""The version of these scripts, which CHANGELOG.md describes."""

VERSION = "0.2.0"
