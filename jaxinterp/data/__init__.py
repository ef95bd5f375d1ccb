"""Data: where images come from, how they are augmented, and how they reach the device.

A small set is loaded whole (`load`), put on the device once (`to_device`) and drawn from there
(`epoch_order`, `draw_batch`); a large one is streamed from the host (`stream`, `stream_part`). A set of one's own, a
folder, a table or arrays, is listed first (`own_set`, `own_arrays`). `download` fetches official files; nothing else
uses the network. Images are float32 NHWC in [0, 1], labels int32; the order of examples and every random draw are
functions of (seed, epoch, index).
"""

from jaxinterp.data.augment import Augment, color_jitter, compose, crop, flip, identity, rotate
from jaxinterp.data.datasets import NAMES, Dataset, hold_out
from jaxinterp.data.loading import load, own_set, read_part, stream_part
from jaxinterp.data.official import download
from jaxinterp.data.own import OwnSet, is_own
from jaxinterp.data.own_arrays import own_arrays
from jaxinterp.data.pictures import Conversion
from jaxinterp.data.pipeline import draw_batch, epoch_order, to_device
from jaxinterp.data.randaugment import rand_augment
from jaxinterp.data.stream import Stream, stream

__all__ = [
    "NAMES",
    "Augment",
    "Conversion",
    "Dataset",
    "OwnSet",
    "Stream",
    "color_jitter",
    "compose",
    "crop",
    "download",
    "draw_batch",
    "epoch_order",
    "flip",
    "hold_out",
    "identity",
    "is_own",
    "load",
    "own_arrays",
    "own_set",
    "rand_augment",
    "read_part",
    "rotate",
    "stream",
    "stream_part",
    "to_device",
]
