"""How near int8 comes to float32 on processors that this machine is not.

    python benchmarks/int8_sums.py --families clip

Processors with VNNI or AMX sum products of 8-bit numbers in 32 bits; the others in 16, where weights may only take half
of their range. Here the arithmetic of either kind is done in float32: every quantised number is rounded as int8 rounds
it, and sums are exact enough. That is how int8's rows look there; it says nothing of their speed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from models_at_hand import CALIBRATED, JUDGED, Table, at_hand, draw, heading, machine

from image_encoders import models
from image_encoders.engines.closeness import closeness
from image_encoders.engines.int8 import quantized_model
from image_encoders.engines.openvino import OpenVinoEmbedder, core, folder_of


def in_float(model):
    """The quantised model with every step spelled out, so that nothing of it runs in 8 bits."""
    from openvino import opset13 as op

    model = model.clone()
    for node in model.get_ordered_ops():
        first = node.input_value(0).get_node() if node.inputs() else None
        stored = node.get_type_name() == "Convert" and first.get_type_name() == "Constant"
        if stored and node.get_element_type().to_dtype() == np.float32:  # weights, kept in 8 bits
            node.output(0).replace(op.constant(first.data.astype(np.float32)).output(0))
        elif node.get_type_name() == "FakeQuantize":
            x, low, high, out_low, out_high = (node.input_value(i) for i in range(5))
            steps = op.constant(np.float32(node.get_levels() - 1))
            x = op.subtract(op.minimum(op.maximum(x, low), high), low)
            level = op.round(op.multiply(x, op.divide(steps, op.subtract(high, low))), "half_to_even")
            scaled = op.multiply(level, op.divide(op.subtract(out_high, out_low), steps))
            node.output(0).replace(op.add(scaled, out_low).output(0))
    model.validate_nodes_and_infer_types()
    return model


def rows_of(model, inputs: np.ndarray) -> np.ndarray:
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    batches = (inputs[start : start + 8] for start in range(0, len(inputs), 8))
    return np.concatenate([next(iter(request.infer({0: batch}).values())).copy() for batch in batches])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = [family for family in models.families() if family != "custom"]
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--images", type=int, default=80, help="that are judged")
    parser.add_argument("--calibration", type=int, default=128, help="other images, that int8 is calibrated on")
    options = parser.parse_args(arguments)
    heading(machine())
    table = Table("model", "sums in", "computed in", "least cosine", "least centred cosine", "neighbours")
    for model in at_hand(options.families):
        tower = model.load(device="cpu", precision="float32", engine="openvino").tower("image")
        embedder = tower.embed
        assert isinstance(embedder, OpenVinoEmbedder)
        plain = core().read_model(folder_of(embedder._net) / "net.xml")
        calibration = [tower.input(draw(CALIBRATED, number)) for number in range(options.calibration)]
        inputs = np.stack([tower.input(draw(JUDGED, number)) for number in range(options.images)])
        wanted = rows_of(plain, inputs)
        for wide in (False, True):
            quantized = quantized_model(plain.clone(), calibration, wide)
            ways = {"float32": in_float(quantized)} if wide else {"int8": quantized, "float32": in_float(quantized)}
            for way, one in ways.items():
                near = closeness(rows_of(one, inputs), wanted)
                table.add(
                    {
                        "model": model.label,
                        "sums in": "32 bits" if wide else "16 bits",
                        "computed in": way,
                        "least cosine": near.cosine,
                        "least centred cosine": near.centred,
                        "neighbours": near.neighbours,
                    }
                )


if __name__ == "__main__":
    main()
