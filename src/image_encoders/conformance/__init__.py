"""Conformance: do the families give the rows of their original codes?

bundle.py      what is in this folder: recipes of synthetic checkpoints, inputs, the original codes' rows (README.md)
agreement.py   how far found rows are from reference rows
cases.py       every checkpoint with the checks it has to pass, and `verify`, which runs them
published.py   rows that were published for real weights, for whoever holds those

make_checkpoint.py and make_inputs.py came with the bundle and stay as they are.
"""
