"""Colours of classes in masks."""


def palette() -> list[int]:
    """Red, green and blue of 256 classes, as Pascal VOC has them: 0 is black."""
    bits = [
        [number >> (3 * place + channel) & 1 for place in range(8)] for number in range(256) for channel in range(3)
    ]
    return [sum(bit << (7 - place) for place, bit in enumerate(of_one)) for of_one in bits]
