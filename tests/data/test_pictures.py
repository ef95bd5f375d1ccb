"""Pictures of every mode and format: pixel values, what is said, and what is refused."""

import io
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxinterp.data.images import read_images
from jaxinterp.data.pictures import FORMATS, Conversion, convert, read_file, size_of
from jaxinterp.errors import DataError
from jaxinterp.files import printable

RED = Image.new("RGB", (4, 4), (255, 0, 0))
SIDES = np.zeros((2, 4, 3), np.uint8)  # left half white, right half black
SIDES[:, :2] = 255
EXIF = {turn: Image.Exif() for turn in (3, 6)}
for turn, exif in EXIF.items():
    exif[0x0112] = turn


def encoded(image, kind="PNG", **options):
    box = io.BytesIO()
    image.save(box, kind, **options)
    return box.getvalue()


def converted(content, size=4, **options):
    return convert(content, size, size, Conversion(**options))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind):
    picture = converted(encoded(RED, kind), channels=3)
    mode = "P" if kind == "GIF" else "RGB"
    assert (picture.pixels.shape, picture.original) == ((4, 4, 3), f"4x4 {mode}")
    np.testing.assert_allclose(
        picture.pixels, np.asarray(RED), atol=8 if kind in ("JPEG", "JPEG2000", "AVIF", "WEBP") else 0
    )


@pytest.mark.parametrize(
    ("image", "kind", "rgb", "gray"),
    [
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255), 255),
        (Image.new("L", (4, 4), 51), "PNG", (51, 51, 51), 51),
        (Image.new("LA", (4, 4), (200, 128)), "PNG", (100, 100, 100), 100),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG", (0, 0, 0), 0),
        (RED.convert("P"), "PNG", (255, 0, 0), 76),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", (255, 0, 0), 76),
        (RED.convert("YCbCr"), "TIFF", (254, 0, 0), 76),
    ],
)
def test_every_mode_becomes_color_or_gray(image, kind, rgb, gray):
    content = encoded(image, kind)
    color, level = converted(content, channels=3), converted(content, channels=1)
    np.testing.assert_allclose(color.pixels, np.broadcast_to(rgb, (4, 4, 3)), atol=1)
    np.testing.assert_allclose(level.pixels, np.full((4, 4, 1), gray), atol=1)
    assert f"{image.mode} as RGB" in color.notes
    assert (f"{image.mode} as L" in level.notes) == (image.mode != "L")


@pytest.mark.parametrize(("background", "level"), [("black", 0), ("gray", 128), ("white", 255)])
def test_transparent_parts_lie_over_the_background(background, level):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    clear = [encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0))), encoded(palette, transparency=1)]
    for content in [*clear, encoded(Image.new("RGB", (4, 4), (7, 7, 7)), transparency=(7, 7, 7))]:
        picture = converted(content, background=background)
        assert set(picture.pixels.ravel()) == {level}
        assert f"transparent parts over {background}" in picture.notes
    opaque = converted(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 255))), background=background)
    assert opaque.notes == ("RGBA as RGB",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", [3, 6])
def test_exif_turns_as_viewers_show_it(kind, turn):
    square = np.kron(np.array([[255, 0], [0, 0]], np.uint8), np.ones((8, 8), np.uint8))
    image = Image.fromarray(square).convert("RGB")
    upright = np.rot90(square, 2) if turn == 3 else np.rot90(square, -1)
    picture = converted(encoded(image, kind, exif=EXIF[turn]), 16, channels=1)
    np.testing.assert_allclose(picture.pixels[..., 0], upright, atol=30 if kind in ("JPEG", "WEBP") else 0)
    assert "turned by its EXIF orientation" in picture.notes


def test_the_first_of_several_pictures_is_taken():
    others = [Image.new("RGB", (4, 4), "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        picture = converted(encoded(RED, kind, save_all=True, append_images=others, **options))
        np.testing.assert_array_equal(picture.pixels, np.asarray(RED))
        assert "first of several pictures" in picture.notes


def test_aspect_ratios_are_kept_by_cutting_or_padding():
    content = encoded(Image.fromarray(SIDES))
    cut, padded = converted(content, 2), converted(content, 4, fit="pad", background="gray")
    np.testing.assert_array_equal(cut.pixels[:, :, 0], [[255, 0]] * 2)  # the center, not squashed
    np.testing.assert_array_equal(padded.pixels[:, 0, 0], [128, 255, 255, 128])
    assert (cut.notes, padded.notes) == (("cut to its center",), ("padded with gray",))
    assert converted(encoded(RED), 8).notes == ()
    tall = convert(encoded(Image.new("L", (30, 10), 9)), 3, 6, Conversion(channels=1))
    assert (tall.pixels.shape, set(tall.pixels.ravel())) == ((6, 3, 1), {9})


@pytest.mark.parametrize(
    ("top", "bits", "given"), [(255, 8, 0), (4095, 12, 0), (65535, 16, 0), (4095, 16, 16), (1000, 10, 10), (9, 14, 14)]
)
def test_deep_gray_values_are_scaled_by_the_bits_that_are_said(top, bits, given):
    values = np.array([[0, top], [top // 2, 0]], np.uint16)
    picture = converted(encoded(Image.fromarray(values)), 2, channels=1, bits=given)
    np.testing.assert_array_equal(picture.pixels[..., 0], np.rint(values * (255 / (2**bits - 1))))
    assert f"values 0 to {2**bits - 1} of {bits} bits" in picture.notes


def test_deep_values_without_a_known_scale_are_refused():
    for pixels, bits, message in [
        (np.full((2, 2), 7.5, np.float32), 0, "got F values from 7.5 to 7.5, expected 0 to 1"),
        (np.full((2, 2), np.nan, np.float32), 0, "got F values from nan to nan, expected 0 to 1"),
        (np.full((2, 2), 65536, np.int32), 0, "got I values from 65536 to 65536, expected 0 to 65535"),
        (np.full((2, 2), -1, np.int32), 0, "got I values from -1 to -1, expected 0 to 255"),
        (np.full((2, 2), 5000, np.int32), 12, "got I values from 5000 to 5000, expected 0 to 4095"),
    ]:
        with pytest.raises(DataError, match=message):
            converted(encoded(Image.fromarray(pixels), "TIFF"), bits=bits)


def test_what_is_no_picture_is_said_in_one_line():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise))
    for content, message in [
        (b"", "^got an empty file, expected an image$"),
        (b"no image", "^got another kind of file, expected an image of AVIF"),
        (encoded(RED, "TGA"), "^got another kind of file, expected an image of AVIF"),
        (whole[:900], "^got .*truncated.*, expected an image that can be read$"),
        (encoded(Image.fromarray(noise), "JPEG")[:900], "^got .*, expected an image that can be read$"),
        (whole[:200] + bytes(100) + whole[300:], "^got .*, expected an image that can be read$"),
        (encoded(RED, "AVIF")[:-20], "^got .*, expected an image"),
        (b"BLP2" + bytes(60), "^got another kind of file, expected an image of AVIF"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            converted(content)
        assert "\n" not in str(error.value)


def test_no_program_runs_and_no_bomb_explodes(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "x.png").write_bytes(encoded(RED, "EPS"))
    with pytest.raises(DataError, match=r"x\.png: got another kind of file, expected an image of"):
        read_images([tmp_path / "x.png"], 8, 8, 3)
    assert not ran.exists()
    bomb = encoded(Image.new("1", (1, 1)))
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(DataError, match=r"bomb\.png: got .*decompression bomb.*, expected an image that can be read"):
        read_images([tmp_path / "bomb.png"], 8, 8, 3)


def test_files_that_cannot_be_read_are_said(tmp_path):
    for path, message in [
        (tmp_path / "no.png", "^got no such file, expected a file$"),
        (tmp_path, "^got something else"),
    ]:
        with pytest.raises(DataError, match=message):
            read_file(path)


def test_every_format_that_is_read_is_one_of_the_oldest_pillow_that_is_allowed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (least,) = [line.removeprefix("pillow>=") for line in project["dependencies"] if line.startswith("pillow")]
    assert tuple(map(int, least.split("."))) >= (11, 3)  # which has AVIF: Pillow fails on a format it does not know
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


def test_sizes_are_told_by_the_head_of_a_file():
    for mode, channels in (("L", 1), ("LA", 1), ("I;16", 1), ("RGB", 3), ("P", 3)):
        whole = encoded(Image.new(mode, (30, 20)))
        assert size_of(whole) == size_of(whole[:-20]) == (20, 30, channels)
    assert size_of(b"words") is size_of(encoded(RED, "TGA")) is None
    assert [size_of(np.zeros(shape, np.uint8)) for shape in ((4, 6), (4, 6, 1))] == [(4, 6, 1)] * 2


def test_lines_name_files_whatever_their_names(tmp_path):
    odd = os.fsencode(tmp_path) + b"/caf\xe9[red].png"
    with open(odd, "wb") as file:
        file.write(encoded(Image.fromarray(SIDES)))
    _, (line,) = read_images([type(tmp_path)(os.fsdecode(odd))], 2, 2, 3)
    assert line == f"{tmp_path}/caf\\xe9[red].png: 4x2 RGB -> 2x2 RGB (cut to its center)"
    assert printable("café") == "café"
