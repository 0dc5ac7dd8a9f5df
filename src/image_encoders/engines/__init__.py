"""What runs a net on a device.

    select.Runtime.resolve(device, precision, engine)   the caller's request, checked
    select.select_embedders(runtime, nets)              the functions that `Tower`s call

A `Net` says how to build a net; engines that keep a converted copy of it on disk build it only once. The files, each
importing only those before it:

    machine.py     devices and instructions
    embedder.py    Net and Embedder
    precision.py   the precisions: which engines and devices compute each
    closeness.py   how close embeddings are to float32's
    torch.py       nets run by PyTorch
    openvino.py    nets run by OpenVINO, from converted copies in the cache
    int8.py        copies in 8 bits
    select.py      which of them runs a net
"""
