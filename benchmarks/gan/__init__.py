"""The GAN captioner, a baseline: see ``benchmarks/gan_captioner.py``."""
