"""The demo: a captioner that becomes more distinctive while you watch, on drawn scenes.

``contrastive-caption demo`` on the command line, or :func:`hf_contrastive_caption.demo.run.run_demo`. Importing this
package imports nothing else, so that the command line starts fast.
"""
