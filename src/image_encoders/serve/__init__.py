"""The HTTP service: embeddings for programs, and a page where people search their images."""
