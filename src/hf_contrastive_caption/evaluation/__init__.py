"""Is a captioner more distinctive, and still right? Self-retrieval, caption metrics and one report of both."""
