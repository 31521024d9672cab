"""Names of the Triton kernels, as reports give them."""

from __future__ import annotations

import re

from . import ROOT

KERNELS = {
    name
    for file in (ROOT / "kernels").glob("*.py")
    for name in re.findall(r"^def _(\w+)_kernel\($", file.read_text(), re.MULTILINE)
}
