"""Tests of kernels executed from their PTX; they need the plugin helpers.ptx.plugin, see tests/kernels/test_ptx.py."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if "helpers.ptx.plugin" in sys.modules else ["test_*.py"]
