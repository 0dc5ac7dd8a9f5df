"""Weights: files fetched and checked, one safe reader per file format, strict assignment to a net."""
