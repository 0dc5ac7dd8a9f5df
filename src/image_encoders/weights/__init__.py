"""Weights: files fetched and checked, one safe reader per file format, strict assignment to a net.

fetch.py              a published file or a Hugging Face checkpoint into the cache: resumable, atomic, checked
torch_file.py         what torch.save wrote, read without running the pickle inside
tensor_bundle.py      TensorFlow 2 SavedModel folders, read without TensorFlow
npz.py                numpy archives, array by array
safetensors_file.py   safetensors, both ways
convert.py            an original checkpoint's tensors and metadata in one file of our own
assign.py             tensors into a net, with nothing missing and nothing left over
digest.py             one digest for a set of named tensors, whatever file they came from

Below them: files.py (bytes, mapped), raw.py (a tensor's bytes), and the formats inside the formats:
zip_records.py, plain_pickle.py, protobuf.py.
"""
