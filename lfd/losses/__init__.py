"""Distillation losses by name.

A loss is one file here and one line in LOSSES: a module that says which features it reads, is built
from the shapes that a dry run found and from its own options, and maps two networks' outputs to named
raw scalars. It knows nothing of weights or balance: those belong to the configuration
(`lfd.config.DistillConfig`), and `lfd.methods` has the ones that each was published with.
"""

from __future__ import annotations

from lfd.losses.afdcd import AfDCD
from lfd.losses.at import AT
from lfd.losses.attnfd import AttnFD
from lfd.losses.cirkd import CIRKD
from lfd.losses.common import DistillLoss
from lfd.losses.cwd import CWD
from lfd.losses.dist import DIST
from lfd.losses.dsd import DSD
from lfd.losses.fitnet import FitNet
from lfd.losses.ifvd import IFVD
from lfd.losses.kd import KD
from lfd.losses.lfd import LFD
from lfd.losses.mgd import MGD
from lfd.losses.skd import SKD

LOSSES: dict[str, type[DistillLoss]] = {
    "kd": KD,
    "lfd": LFD,
    "skd": SKD,
    "ifvd": IFVD,
    "cwd": CWD,
    "at": AT,
    "fitnet": FitNet,
    "dist": DIST,
    "dsd": DSD,
    "cirkd": CIRKD,
    "mgd": MGD,
    "attnfd": AttnFD,
    "afdcd": AfDCD,
}
