"""snnkit: distil, quantise, export and validate spiking networks before they go to neuromorphic hardware."""

__version__ = "0.1.0"
