"""Requests for embeddings and their answers over HTTP: below the service and the Jina gateway, which share them."""
