"""Image sets of one's own: what is listed, how it is split and read, and every bad input in one line."""

import os
import re

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

from jaxinterp.data import Conversion, load, own_arrays, own_set, read_part, stream_part
from jaxinterp.data.own import hold_out_examples
from jaxinterp.data.own_files import find, write_split
from jaxinterp.errors import ConfigError, DataError

GRAY = Conversion(8, 1)


def paint(path, level=100, size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Three classes of 12 gray pictures, whose level tells class and number."""
    for k, name in enumerate(("cat", "dog", "fox")):
        for i in range(12):
            paint(tmp_path / "photos" / name / f"{i}.{('png', 'bmp')[i % 2]}", 20 * k + i)
    return tmp_path / "photos"


def names(own, part):
    examples = own.part(part)
    return [examples.name(i) for i in examples.index]


def test_a_folder_of_classes_is_split_the_same_way_every_time(photos):
    own = own_set(f"folder:{photos}", test_fraction=0.25)
    assert repr(own) == f"OwnSet(folder:{photos}: 3 classes; 27 train, 9 test)"
    assert own.classes == ("cat", "dog", "fox")
    assert np.bincount(own.part("test").labels).tolist() == [3, 3, 3]
    assert not set(names(own, "train")) & set(names(own, "test"))
    assert own.notes == (
        "split made: 25% of each class to test, seed 0 (27 and 9 images)",
        "fewer than 10 images to train: cat (9), dog (9), fox (9)",
    )
    moved = photos.rename(photos.with_name("moved"))
    assert names(own_set(f"folder:{moved}", test_fraction=0.25), "test") == names(own, "test")
    assert names(own_set(f"folder:{moved}", test_fraction=0.25, seed=1), "test") != names(own, "test")
    paint(moved / "cat" / "more.png")
    assert len(set(names(own_set(f"folder:{moved}", test_fraction=0.25), "test")) ^ set(names(own, "test"))) <= 2


def test_the_pictures_of_a_part_are_read_with_their_labels_and_counted(photos):
    for part in ("train", "test"):
        data = load(f"folder:{photos}", part, conversion=GRAY)
        assert (data.images.shape[1:], data.images.dtype, data.maximum) == ((8, 8, 1), np.uint8, 255)
        assert ((data.images[:, 0, 0, 0] // 20) == data.labels).all()
        assert len(set(data.labels[:6].tolist())) > 1  # mixed, so that the first images are of many classes
        conversions = f"RGB as L: {len(data)}, cut to its center: {len(data)}"
        assert data.provenance["conversions"] == conversions
    first = read_part(own_set(f"folder:{photos}"), "train", GRAY, limit=5)
    np.testing.assert_array_equal(first.images, load(f"folder:{photos}", "train", conversion=GRAY).images[:5])
    was = load(f"folder:{photos}", "test", conversion=GRAY).provenance["sha256"]
    for number in range(12):
        paint(photos / "cat" / f"{number}.{('png', 'bmp')[number % 2]}", 99)
    assert load(f"folder:{photos}", "test", conversion=GRAY).provenance["sha256"] != was


@pytest.mark.parametrize(
    ("folders", "parts", "split"),
    [
        (("train", "test"), {"train": 4, "test": 4}, "as it was found"),
        (("Training", "validation", "testing"), {"train": 4, "val": 4, "test": 4}, "as it was found"),
        (("train", "valid"), {"train": 4, "test": 4}, "the validation part is the test part"),
        (("train",), {"train": 2, "test": 2}, "made: 50% of each class to test, seed 0"),
    ],
)
def test_parts_above_the_classes_are_taken(tmp_path, folders, parts, split):
    for folder in folders:
        for name in ("cat", "dog"):
            for i in range(2):
                paint(tmp_path / folder / name / "deeper" / f"{i}.png")
    own = own_set(f"folder:{tmp_path}", test_fraction=0.5)
    assert {part: len(examples) for part, examples in own.parts.items()} == parts
    assert (own.split, own.classes) == (split, ("cat", "dog"))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "plane"):
        for i in range(2):
            paint(tmp_path / name / f"{i}.png")
    assert own_set(f"folder:{tmp_path}").classes == ("plane", "train")


def test_what_systems_leave_is_passed_over_and_strays_are_said(photos):
    for place in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "__MACOSX/x.png"):
        (photos / place).parent.mkdir(exist_ok=True)
        (photos / place).write_bytes(b"x")
    for name in ("README.md", "cat/notes.txt", "dog/labels.csv"):
        (photos / name).write_text("words")
    own = own_set(f"folder:{photos}")
    assert own.classes == ("cat", "dog", "fox")
    assert sum(map(len, own.parts.values())) == 36
    assert own.notes[:2] == (
        "left out, beside the classes' folders: README.md",
        "left out 2, no images by their names: cat/notes.txt, dog/labels.csv",
    )


def test_bad_files_are_named_and_counted_or_left_out(photos):
    (photos / "cat" / "notes.txt").write_text("words")
    (photos / "cat" / "empty.png").touch()
    (photos / "owl").mkdir()
    (photos / "owl" / "owl.heic").touch()
    message = r"photos: got 2 of 38: cat/empty\.png \(empty\), owl \(a class without images, other files: 1\), expected"
    with pytest.raises(DataError, match=message):
        own_set(f"folder:{photos}")
    own = own_set(f"folder:{photos}", on_bad="skip")
    assert own.notes[:2] == (
        "left out 2, no images by their names: cat/notes.txt, owl/owl.heic",
        "left out 2 of 38: cat/empty.png (empty), owl (a class without images, other files: 1)",
    )
    for i in range(5):
        (photos / "dog" / f"{i}.png").write_bytes(b"words")
    own = own_set(f"folder:{photos}", on_bad="skip")
    with pytest.raises(
        DataError, match=r"photos: got \d of \d+: dog/\d\.png \(got another kind .* and \d more, .*; .*data.on_bad=skip"
    ):
        read_part(own, "train", GRAY)
    data = read_part(own, "train", GRAY, on_bad="skip")
    assert data.provenance["left out"].startswith("left out ")
    assert len(data) < len(own.part("train"))
    with pytest.raises((ConfigError, TypeCheckError), match="on_bad"):
        own_set(f"folder:{photos}", on_bad="keep")


def test_links_to_nothing_are_bad_files_and_a_set_of_bad_files_alone_is_one_line(photos):
    (photos / "cat" / "gone.png").symlink_to(photos / "nowhere.png")
    with pytest.raises(DataError, match=r"photos: got 1 of 37: cat/gone\.png \(no such file\), expected"):
        own_set(f"folder:{photos}")
    own = own_set(f"folder:{photos}", on_bad="skip")
    assert own.notes[0] == "left out 1 of 37: cat/gone.png (no such file)"
    assert sum(map(len, own.parts.values())) == 36
    for file in photos.glob("*/*.*"):
        file.unlink()
        file.touch()
    with pytest.raises(DataError, match="photos: got no image that can be used, expected at least one"):
        own_set(f"folder:{photos}", classes=("cat", "dog", "fox"), on_bad="skip")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "photos: got no such folder, expected a folder of images for each class"),
        (["photos"], "photos: got something else, expected a folder"),
        (["photos/a.png"], "photos: got 1 files and no folder, expected a folder of images for each class"),
        (["photos/cat/a.png"], "photos: got the class cat alone, expected two classes"),
        (["photos/cat/a.png", "photos/dog/a.png"], "photos: got 1 image of cat, dog, expected at least 2"),
        (["photos/cat/a.png", "photos/CAT/b.png"], "photos: got the classes CAT and cat, expected names that differ"),
        (
            ["photos/train/cat/a.png", "photos/test/cat/a.png", "photos/more/a.png"],
            "photos: got the folder more beside train, expected train, val, test",
        ),
        (["photos/train/c/a.png", "photos/val/c/a.png", "photos/valid/c/a.png"], "photos: got two folders of the part"),
        (
            [f"photos/{x}.png" for x in ("train/a/1", "train/b/1", "test/a/2", "test/c/2")],
            "photos: got images of c to test and none to train",
        ),
    ],
)
def test_folders_that_are_no_data_set_are_one_line(tmp_path, files, message):
    for file in files:
        if file.endswith(".png"):
            paint(tmp_path / file)
        else:
            (tmp_path / file).touch()
    with pytest.raises(DataError, match=f"^.*{re.escape(message)}") as error:
        own_set(f"folder:{tmp_path}/photos")
    assert "\n" not in str(error.value)


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path):
    for name in (b"caf\xe9", b"b[red]"):
        for i in range(2):
            folder = os.fsencode(tmp_path) + b"/p/" + name
            os.makedirs(folder, exist_ok=True)
            paint(tmp_path / "one.png").rename(os.fsdecode(folder + b"/%d\xff.png" % i))
    own = own_set(f"folder:{tmp_path}/p")
    assert own.classes == ("b[red]", "caf\\xe9")
    assert len(read_part(own, "train", GRAY)) == 2
    write_split(own, tmp_path / "split.csv")
    again = own_set(f"csv:{tmp_path}/split.csv")
    assert again.classes == own.classes
    np.testing.assert_array_equal(again.part("test").labels, own.part("test").labels)


def test_a_table_lists_paths_labels_and_parts(photos, tmp_path):
    for text, delimiter in (("path,label\n", ","), ("Label;Path\n", ";"), ("\ufeffpath\tlabel\n", "\t")):
        rows = [(f"photos/{name}/{i}.png", name) for name in ("fox", "cat") for i in (0, 2, 4)]
        rows = [row[::-1] for row in rows] if text.startswith("Label") else rows
        (tmp_path / "list.csv").write_text(text + "".join(f"{delimiter.join(row)}\n" for row in rows))
        own = own_set(f"csv:{tmp_path}/list.csv")
        assert (own.classes, len(own.part("train")), len(own.part("test"))) == (("cat", "fox"), 4, 2)
    table = "path,label,split\nphotos/cat/0.png,10,train\nphotos/dog/0.png,9,train\nphotos/cat/2.png,10,test\n"
    (tmp_path / "list.csv").write_text(table)
    own = own_set(f"csv:{tmp_path}/list.csv")
    assert (own.classes, own.split) == (("9", "10"), "as it was found")
    assert own_set(f"csv:{tmp_path}/list.csv", classes=("10", "9", "8")).part("test").labels.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "list.csv: got no such file, expected a file"),
        ("", "list.csv: got the columns none, expected path, label and perhaps split"),
        ("file,class\na,b\n", "list.csv: got the columns file, class, expected path, label"),
        ("path,label\n", "list.csv: got no row"),
        ("path,label\na.png,\n", "list.csv, line 2: got no label"),
        ("path,label\n,cat\n", "list.csv, line 2: got no path"),
        ("path,label,split\na.png,cat,tune\n", "list.csv, line 2: got the split tune, expected train, val or test"),
        ("path,label\na.png,cat\na.png,dog\n", "list.csv, line 3: got a.png a second time, after line 2"),
        ("path,label\na.png,cat\nb.png,dog\n", "list.csv: got 2 of 2: a.png (no such file), b.png (no such file), e"),
        ('path,label\n"a.png,cat\n', "list.csv, line 2: got unexpected end of data, expected a line of a CSV file"),
    ],
)
def test_tables_with_faults_are_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=f"^.*{re.escape(message)}") as error:
        own_set(f"csv:{tmp_path}/list.csv")
    assert "\n" not in str(error.value)


def test_labels_that_are_unknown_are_named(photos):
    with pytest.raises(DataError, match="photos: got the label fox, expected one of cat, dog"):
        own_set(f"folder:{photos}", classes=("cat", "dog"))


def test_a_split_is_written_as_a_table_of_the_same_set(photos, tmp_path):
    own = own_set(f"folder:{photos}")
    write_split(own, tmp_path / "run" / "split.csv")
    paint(photos / "cat" / "later.png")
    again = own_set(f"csv:{tmp_path}/run/split.csv")
    assert {part: len(some) for part, some in again.parts.items()} == {"train": 30, "test": 6}
    for part in ("train", "test"):
        assert names(own, part) == names(again, part)
    was, now = (read_part(one, "test", GRAY).provenance["sha256"] for one in (own, again))
    assert was == now


def test_paths_are_also_found_below_the_data_folder(photos, tmp_path):
    assert find("photos", tmp_path) == photos
    assert find("/elsewhere/photos", tmp_path) == photos
    assert find("/nowhere/\0", tmp_path).name == "\0"


@pytest.mark.parametrize(
    ("keys", "pixels", "expected"),
    [
        (("images", "labels"), np.full((20, 8, 8), 128, np.uint8), 128),
        (("train_images", "train_labels"), np.full((20, 8, 8, 3), 0.5, np.float32), 128),
        (("x_train", "y_train"), np.ones((20, 8, 8, 1), bool), 255),
        (("images", "labels"), np.full((20, 8, 8), 4095, np.uint16), 255),
    ],
)
def test_npz_files_of_several_layouts_are_read(tmp_path, keys, pixels, expected):
    labels = np.arange(20)[:, None] % 2
    np.savez(tmp_path / "set.npz", **dict(zip(keys, (pixels, labels), strict=True)), classes=np.array(["cat", "dog"]))
    own = own_set(f"npz:{tmp_path}/set.npz")
    data = read_part(own, "test", Conversion(8, 1))
    assert (len(data), data.classes, set(data.images.ravel().tolist())) == (4, ("cat", "dog"), {expected})
    assert np.bincount(data.labels).tolist() == [2, 2]
    if pixels.dtype == np.uint16:
        assert "values 0 to 4095 of 12 bits: 4" in data.provenance["conversions"]
        with pytest.raises(DataError, match=r"got values up to 4095, expected 0 to 1023"):
            read_part(own, "test", Conversion(8, 1, bits=10))


def test_arrays_have_parts_classes_and_any_size():
    images = np.zeros((6, 4, 8), np.uint8)
    images[:, :, 2:6] = 200
    own = own_arrays(images, np.array(list("abcabc")), test=(images[:2], np.array(["c", "a"])), classes=("c", "b", "a"))
    data = load(own, "test", conversion=Conversion(4, 3))
    assert sorted(data.labels.tolist()) == [0, 2]
    assert set(data.images.ravel().tolist()) == {200}  # the center
    some = own.select((2, 0))
    assert (some.classes, sorted(some.part("train").labels.tolist())) == (("a", "c"), [0, 0, 1, 1])
    assert sorted(load(some, "test", conversion=GRAY).labels.tolist()) == [0, 1]
    with pytest.raises(ConfigError, match=r"^class_subset:"):
        own.select((0, 3))
    with pytest.raises(DataError, match="arrays: got the parts train, test, expected one named val"):
        load(own, "val")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8, 2), np.uint8), np.arange(4), "^images: got uint8"),
        (np.zeros((4, 8, 8), np.int32), np.arange(4), "^images: got int32"),
        (np.full((4, 8, 8), 255.0), np.arange(4), r"^images: got floats from 255 to 255"),
        (np.full((4, 8, 8), np.nan), np.arange(4), r"^images: got floats from nan"),
        (np.zeros((4, 8, 8), np.uint8), np.arange(3), "^labels: "),
        (np.zeros((4, 8, 8), np.uint8), np.arange(4) - 1, r"^labels: got -1"),
        (np.zeros((4, 8, 8), np.uint8), np.eye(4), "^labels: got float64"),
        (np.zeros((4, 8, 8), np.uint8), np.zeros(4, int), "^labels: got the class 0 alone"),
        (np.zeros((0, 8, 8), np.uint8), np.zeros(0, int), "^images: "),
    ],
)
def test_arrays_of_other_kinds_are_refused(tmp_path, images, labels, message):
    with pytest.raises(ConfigError, match=message):
        own_arrays(images, labels)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    with pytest.raises(DataError, match=f"set.npz: {message.removeprefix('^')}"):
        own_set(f"npz:{tmp_path}/set.npz")


def test_npz_files_that_are_none_are_one_line(tmp_path):
    path = tmp_path / "set.npz"
    for write, message in [
        (lambda: None, "got no such file, expected a file"),
        (lambda: path.write_bytes(b"words"), "got .*, expected an .npz file"),
        (lambda: path.write_bytes(b"PK\3\4" + bytes(40)), "got .*, expected an .npz file"),
        (lambda: np.savez(path, a=np.zeros(2)), "got the arrays a, expected images and labels"),
        (lambda: np.savez(path, images=np.array([None]), labels=np.zeros(1)), "got .*, expected an .npz file"),
    ]:
        write()
        with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: {message}") as error:
            own_set(f"npz:{path}")
        assert "\n" not in str(error.value)


def test_names_that_are_no_place_are_refused():
    for name in ("folder:", "zip:photos", "photos"):
        with pytest.raises(ConfigError, match=r"^name:"):
            own_set(name)
        with pytest.raises(ConfigError, match=r"^name:"):
            load(name, "train")
    with pytest.raises(ConfigError, match=r"^conversion:"):
        load("digits", "train", conversion=GRAY)


def test_the_bits_of_a_set_are_one_for_all(tmp_path):
    for k, top in enumerate((200, 3000)):
        for i in range(3):
            path = tmp_path / str(k) / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((8, 8), top, np.uint16)).save(path)
    data = load(f"folder:{tmp_path}", "train", conversion=GRAY)
    levels = {int(label): int(image[0, 0, 0]) for image, label in zip(data.images, data.labels, strict=True)}
    assert levels == {0: round(200 * 255 / 4095), 1: round(3000 * 255 / 4095)}
    assert "values 0 to 4095 of 12 bits: 4" in data.provenance["conversions"]


def test_a_stream_yields_every_picture_once_and_shares_them_among_hosts(photos):
    own = own_set(f"folder:{photos}")
    whole = stream_part(own, "train", GRAY, batch_size=6, seed=3)
    assert (whole.steps, whole.image_shape) == (5, (8, 8, 1))
    batches = list(whole.batches(0))
    assert len(batches) == 5
    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index.tolist()) == list(range(30))
    for batch in batches:
        assert (batch["image"][:, 0, 0, 0] // 20 == batch["label"]).all()
    again, other = (np.concatenate([batch["index"] for batch in whole.batches(epoch)]) for epoch in (0, 1))
    np.testing.assert_array_equal(again, index)
    assert (other != index).any()
    hosts = [list(stream_part(own, "train", GRAY, batch_size=6, seed=3, shard=(i, 2)).batches(0)) for i in (0, 1)]
    shares = [np.concatenate([batch["index"] for batch in host]) for host in hosts]
    assert sorted(np.concatenate(shares).tolist()) == list(range(30))
    for size in (31, 5):
        with pytest.raises(ConfigError, match=r"^batch_size:"):
            stream_part(own, "train", GRAY, batch_size=size, seed=0, shard=(0, 2 if size == 5 else 1))


def test_a_stream_names_a_bad_picture_or_passes_over_it(photos):
    own, said = own_set(f"folder:{photos}"), []
    bad = names(own, "train")[4]
    (photos / bad).write_bytes(b"words")
    with pytest.raises(DataError, match=rf"photos: {bad}: got another kind of file, expected an image of"):
        list(stream_part(own, "train", GRAY, batch_size=6, seed=3).batches(0))
    lenient = stream_part(own, "train", GRAY, batch_size=6, seed=3, on_bad="skip", log=said.append)
    for epoch in (0, 1):
        assert sum(len(batch["label"]) for batch in lenient.batches(epoch)) == 30
    assert len(said) == 1
    assert bad in said[0]


def test_the_sum_of_a_listing_is_of_names_labels_and_sizes(photos, tmp_path):
    def listing(name, part="train"):
        return stream_part(own_set(name), part, GRAY, batch_size=2, seed=0).provenance["listing"]

    table = [f"photos/{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(0, 12, 2)]
    path = tmp_path / "list.csv"
    sums = []
    for rows in (table, table[::-1], table[:-1], [table[0].replace(",cat", ",dog"), *table[1:]]):
        path.write_text("\n".join(["path,label,split", *(f"{row},train" for row in rows), "photos/fox/0.png,cat,test"]))
        sums.append(listing(f"csv:{path}"))
    assert sums[0] == sums[1]  # the order is that of the hashed names
    assert len(set(sums)) == 3
    was = listing(f"folder:{photos}")
    assert listing(f"folder:{photos.rename(photos.with_name('moved'))}") == was
    first = names(own_set(f"folder:{tmp_path}/moved"), "train")[0]
    paint(tmp_path / "moved" / first, size=(40, 40))
    assert listing(f"folder:{tmp_path}/moved") != was
    images, arrays = np.zeros((20, 8, 8), np.uint8), []
    for value in (0, 0, 7):
        images[3] = value
        np.savez(tmp_path / "set.npz", images=images, labels=np.arange(20) % 2)
        parts = own_set(f"npz:{tmp_path}/set.npz").parts
        arrays.append(tuple(part.sha256 for part in parts.values()))
    assert arrays[0] == arrays[1] != arrays[2]


def test_examples_are_held_out_by_class(photos):
    rest, held = hold_out_examples(own_set(f"folder:{photos}").part("train"), 0.2)
    assert (np.bincount(rest.labels).tolist(), np.bincount(held.labels).tolist()) == ([8] * 3, [2] * 3)
    with pytest.raises(ConfigError, match=r"^val_fraction:"):
        hold_out_examples(rest, 0.01)


def test_any_prepared_set_is_read(tmp_path, write_prepared):
    sizes = [np.full((6 + i, 9, 3), 10 * i, np.uint8) for i in range(12)]
    write_prepared(tmp_path, "flowers", "train", sizes, [i % 3 for i in range(12)], version="1.0.0")
    own = own_set("tfds:flowers", tmp_path)
    assert {part: len(some) for part, some in own.parts.items()} == {"train": 9, "test": 3}
    assert own.classes == ("0", "1", "2")
    data = load("tfds:flowers:1.0.0", "train", tmp_path, conversion=GRAY)
    assert (data.images[:, 0, 0, 0] // 10 % 3 == data.labels).all()
    assert data.provenance["version"] == "1.0.0"
    for name, message in [
        (
            "tfds:flowers:2.0.0",
            r"flowers/2\.0\.0: got tfds:flowers:1\.0\.0 alone, expected a prepared data set; prepare it by: pip",
        ),
        ("tfds:trees", "trees: got nothing, expected a prepared data set; prepare it by: pip install"),
    ]:
        with pytest.raises(DataError, match=message):
            own_set(name, tmp_path)
    with pytest.raises(DataError, match="got the classes 0, 1, 2, expected a, b"):
        own_set("tfds:flowers", tmp_path, classes=("a", "b"))


def test_records_without_a_label_are_no_class(tmp_path, write_prepared):
    images = [np.full((6, 9, 3), 10 * i, np.uint8) for i in range(12)]
    write_prepared(tmp_path, "flowers", "train", images, [-1, -1, *(i % 3 for i in range(10))], version="1.0.0")
    own = own_set("tfds:flowers", tmp_path)
    assert sorted(own.part("test").labels.tolist()) == [0, 1, 2]
    with pytest.raises(DataError, match=r"got 2 of 9: train record \d \(got the label -1, expected one from 0 on\)"):
        read_part(own, "train", GRAY)
    assert np.bincount(read_part(own, "train", GRAY, on_bad="skip").labels).tolist() == [3, 2, 2]
