"""Writers of tiny data sets, as tensorflow-datasets prepares them and as their authors publish them."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxinterp.data.official import FILES


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def _feature(kind: str, **fields: object) -> dict[str, object]:
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", **fields}


def _write_prepared(
    data_dir: Path,
    name: str,
    split: str,
    images: list[np.ndarray],
    labels: list[int],
    shards: int = 2,
    file_format: str = "array_record",
    version: str = "3.0.2",
) -> list[Path]:
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
    sizes = {image.shape[:2] for image in images}
    height, width = (str(side) for side in sizes.pop()) if len(sizes) == 1 else ("-1", "-1")
    dimensions = {"dimensions": [height, width, str(images[0].shape[-1])]}
    image = _feature("image_feature.Image", image={"shape": dimensions, "dtype": "uint8"})
    label = _feature("class_label_feature.ClassLabel", classLabel={"numClasses": str(max(labels) + 1)})
    features = _feature("features_dict.FeaturesDict", featuresDict={"features": {"image": image, "label": label}})
    info = {
        "name": name,
        "version": version,
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(part)) for part in parts],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return paths


@pytest.fixture
def write_prepared() -> Callable[..., list[Path]]:
    """The writer of prepared sets."""
    return _write_prepared


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path, bytes], Path]:
    """Write a file of a data set and declare its md5 sum the published one."""

    def write(name: str, path: Path, content: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        monkeypatch.setitem(FILES.registry, f"{name}/{path.name}", f"md5:{hashlib.md5(content).hexdigest()}")
        return path

    return write
