"""Which images are near to each image, and lists of their captions that negatives are drawn from."""

from hf_contrastive_caption.neighbours.prepare import NeighbourNegatives, make_neighbours

__all__ = ["NeighbourNegatives", "make_neighbours"]
