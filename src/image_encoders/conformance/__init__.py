"""Conformance: do the families give the embeddings of their original codes?

bundle.py      this folder: recipes of synthetic checkpoints, inputs, the original codes' embeddings (README.md)
agreement.py   how far found embeddings are from reference embeddings
cases.py       every checkpoint with the checks it has to pass, and `verify`, which runs them
published.py   embeddings published for real weights

make_checkpoint.py and make_inputs.py came with the bundle and stay as they are.
"""
