"""Data: where images come from, how they are augmented, and how they reach the device.

A small set is loaded whole (`load`), put on the device once (`to_device`) and drawn from there
(`epoch_order`, `draw_batch`); a large one is streamed from the host (`stream`). `download` fetches official
files; nothing else uses the network. Images are float32 NHWC in [0, 1], labels int32; the order of examples and
every random draw are functions of (seed, epoch, index).
"""

from jaxinterp.data.augment import Augment, compose, crop, flip, identity
from jaxinterp.data.datasets import NAMES, Dataset, hold_out, load
from jaxinterp.data.official import download
from jaxinterp.data.pipeline import draw_batch, epoch_order, to_device
from jaxinterp.data.randaugment import rand_augment
from jaxinterp.data.stream import Stream, stream

__all__ = [
    "NAMES",
    "Augment",
    "Dataset",
    "Stream",
    "compose",
    "crop",
    "download",
    "draw_batch",
    "epoch_order",
    "flip",
    "hold_out",
    "identity",
    "load",
    "rand_augment",
    "stream",
    "to_device",
]
