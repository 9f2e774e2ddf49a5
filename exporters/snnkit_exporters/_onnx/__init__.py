"""The parts of the ONNX exporter: a plan of the arithmetic, one timestep, and the forms built from it."""
