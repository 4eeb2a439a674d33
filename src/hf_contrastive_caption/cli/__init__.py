"""The command line, ``contrastive-caption``. Commands import what they need when they run."""
