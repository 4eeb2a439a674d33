"""Self-retrieval: does a caption find its own image among many?"""
