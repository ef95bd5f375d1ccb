"""Writers of tiny data sets, as tensorflow-datasets prepares them and as their authors publish them."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxinterp.data.official import FILES


def _encode(image):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def _feature(kind, **fields):
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", **fields}


def _write_prepared(data_dir, name, split, images, labels, shards=2, file_format="array_record", version="3.0.2"):
    """Write `data_dir/name/version` with one split, and return the paths of its shards."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / name / version
    folder.mkdir(parents=True)
    parts = np.array_split(np.arange(len(images)), shards)
    paths = [folder / f"{name}-{split}.{file_format}-{i:05d}-of-{shards:05d}" for i in range(shards)]
    for path, part in zip(paths, parts, strict=True):
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for i in part:
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(_encode(images[i]))
            example.features.feature["label"].int64_list.value.append(labels[i])
            writer.write(example.SerializeToString())
        writer.close()
    height, width = images[0].shape[:2] if len({image.shape for image in images}) == 1 else (-1, -1)
    dimensions = {"dimensions": [str(height), str(width), str(images[0].shape[-1])]}
    image = _feature("image_feature.Image", image={"shape": dimensions, "dtype": "uint8"})
    label = _feature("class_label_feature.ClassLabel", classLabel={"numClasses": str(max(labels) + 1)})
    features = _feature("features_dict.FeaturesDict", featuresDict={"features": {"image": image, "label": label}})
    lengths, template = [str(len(part)) for part in parts], "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [{"name": split, "numBytes": "1", "shardLengths": lengths, "filepathTemplate": template}]
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": splits}
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return paths


@pytest.fixture
def write_prepared():
    """The writer of prepared sets."""
    return _write_prepared


@pytest.fixture
def publish(monkeypatch):
    """Write a file of a data set and declare its md5 sum the published one."""

    def write(name, path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        monkeypatch.setitem(FILES.registry, f"{name}/{path.name}", f"md5:{hashlib.md5(content).hexdigest()}")
        return path

    return write
