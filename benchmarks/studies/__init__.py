"""The paper's studies, and what goes beyond them: what is run (`plan`), and how it is run, measured and shown."""
