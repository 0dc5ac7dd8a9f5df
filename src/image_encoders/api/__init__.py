"""HTTP requests for embeddings and their responses, shared by the service and the Jina gateway."""
