"""Caption metrics: what the references, the other captions and the training captions say of a caption."""
