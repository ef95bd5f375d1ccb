"""Data sets that need no download: scikit-learn's digits, and 2,000 test images of MNIST that lie in the package."""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from jaxinterp.errors import DataError

MNIST_2000 = Path(__file__).with_name("mnist_2000.npz")
SHA256 = "80500fe5fd98ef5b4b5076e08ea8373972be84241e51919ee5b483139ba49c1d"
"""Of the file, which `experiments/mnist_2000.py` makes."""

LICENCES = {
    "digits": "CC BY 4.0 (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository)",
    "mnist": "CC BY-SA 3.0 (Y. LeCun, C. Cortes, C. J. C. Burges)",
    "mnist-2000": "CC BY-SA 3.0 (Y. LeCun, C. Cortes, C. J. C. Burges)",
    "fashion_mnist": "MIT (Zalando SE)",
    "cifar10": "none stated (A. Krizhevsky, 2009)",
    "cifar100": "none stated (A. Krizhevsky, 2009)",
    "imagenet2012": "terms of image-net.org: research, not commercial",
}
"""Licences of data sets, as their publishers state them."""

Split = tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"], dict[str, str]]


def read_mnist_2000() -> Split:
    """Read images, labels and provenance of the 2,000 test images of MNIST.

    They are 200 of each class, as they are in the test set of LeCun, Cortes and Burges
    (http://yann.lecun.com/exdb/mnist/), under CC BY-SA 3.0.

    Raises:
        DataError: the file is damaged.
    """
    content = MNIST_2000.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(f"{MNIST_2000}: got another checksum than {SHA256}; install jaxinterp anew")
    with np.load(MNIST_2000, allow_pickle=False) as arrays:
        images, labels = arrays["images"][..., None], arrays["labels"].astype(np.int32)
    source = {"source": "test set of MNIST, 200 images of each class", "path": str(MNIST_2000), "sha256": SHA256}
    return images, labels, {**source, "licence": LICENCES["mnist-2000"]}
