"""The consistency of predictions as plain loops in NumPy, float64: one head's predictions in another's label system."""

import math

import equations
import numpy as np

IGNORED = 255


def softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return np.array(powers) / math.fsum(powers)


def matrix_of(logits):
    """L (K_1, K_2) to T: each row by itself."""
    return np.stack([softmax(row) for row in logits])


def start_of(similarity):
    """T before the first step, of similarities (K_1, K_2): a hundredth of each row is spread evenly."""
    result = np.empty_like(similarity, dtype=float)
    for row, values in enumerate(similarity):
        total, count = math.fsum(values), len(values)
        for column, value in enumerate(values):
            result[row, column] = 0.99 * (value / total if total else 1 / count) + 0.01 / count
    return result


def mapped(scores, matrix):
    """A head's logits (K_1, h, w) to probabilities of the other label system, (K_2, h, w)."""
    result = np.zeros((matrix.shape[1], *scores.shape[1:]))
    for row, column in np.ndindex(scores.shape[1:]):
        for of, probability in enumerate(softmax(scores[:, row, column])):
            for to in range(matrix.shape[1]):
                result[to, row, column] += probability * matrix[of, to]
    return result


def hard_loss(scores, matrix, labels):
    """Mean over the labelled pixels of a batch, images (K_1, h, w) and label maps (H, W); 0 without such a pixel."""
    terms = []
    for image, label in zip(scores, labels, strict=True):
        full = equations.upsampled(mapped(image, matrix), label.shape)
        for row, column in np.ndindex(label.shape):
            if label[row, column] != IGNORED:
                terms.append(-math.log(full[label[row, column], row, column]))
    return math.fsum(terms) / len(terms) if terms else 0.0


def soft_loss(scores, matrix, theirs, labels):
    """The same against a source's logits (K_2, h, w), compared in their own size; labels say what is left out."""
    terms = []
    for image, other, label in zip(scores, theirs, labels, strict=True):
        own = mapped(image, matrix)
        entropies = np.zeros((1, *own.shape[1:]))
        for row, column in np.ndindex(own.shape[1:]):
            wanted = softmax(other[:, row, column])
            entropies[0, row, column] = -math.fsum(wanted * np.log(own[:, row, column]))
        terms += equations.upsampled(entropies, label.shape)[0][label != IGNORED].tolist()
    return math.fsum(terms) / len(terms) if terms else 0.0
