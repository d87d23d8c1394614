"""Makes digits.npz: what a really trained classifier says of digits that it has not seen.

Run by hand, with scikit-learn 1.9 installed: ``python make_digits.py``. The data set is the "Optical
Recognition of Handwritten Digits" of E. Alpaydin and C. Kaynak (UCI repository, CC BY 4.0), in the copy of
1797 images of 8 × 8 pixels that scikit-learn ships. A multinomial logistic regression is trained on one
half; the file holds its logits for the other half, the labels, the images (pixels 0 to 16) and the rows
of these images in the data set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def main() -> None:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    model = LogisticRegression(max_iter=5000).fit(pixels[train], labels[train])
    test.sort()
    np.savez_compressed(
        Path(__file__).with_name("digits.npz"),
        x=model.decision_function(pixels[test]).astype(np.float32),
        y=labels[test].astype(np.uint8),
        images=pixels[test].reshape(-1, 8, 8).astype(np.uint8),
        rows=test.astype(np.uint16),
    )


if __name__ == "__main__":
    main()
