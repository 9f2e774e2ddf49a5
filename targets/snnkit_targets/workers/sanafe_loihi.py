"""Runs a network of binary spikes on SANA-FE's Loihi: ``python sanafe_loihi.py FOLDER``, alone in its process.

Reads ``job.json`` and ``job.npz``, writes ``result.json`` and ``result.npz``. A layer of depth d works on timestep t at
step t + d; its biases act in these steps alone, and afterwards it neither spikes nor is driven.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import sanafe

INPUTS_PER_CORE = 1024
SILENT = 1e300  # a threshold that nothing reaches


def main(folder: Path) -> None:
    """Builds the network, runs every sample from rest, and adds up what it cost."""
    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "job.npz", allow_pickle=False) as file:
        arrays = dict(file)
    chip = build(job, arrays)
    layers, timesteps = job["layers"], job["timesteps"]
    groups = chip.mapped_neuron_groups
    frames = arrays["input"]  # [T, B, N]
    steps = timesteps + max(layer["depth"] for layer in layers)
    spikes = {layer["name"]: np.zeros((timesteps, frames.shape[1], layer["neurons"]), bool) for layer in layers}
    depth = {layer["name"]: layer["depth"] for layer in layers}
    totals: dict[str, float] = {}
    for sample in range(frames.shape[1]):
        chip.reset()
        for neuron, train in zip(groups["input"], frames[:, sample].T, strict=True):
            neuron.set_attributes(model_attributes={"spikes": [*map(bool, train), *[False] * (steps - timesteps)]})
        for layer in layers:
            switch(groups[layer["name"]], arrays[f"{layer['name']}.threshold"], 0 * arrays[f"{layer['name']}.bias"])
        for step in range(steps):
            for layer in layers:
                name = layer["name"]
                if step == layer["depth"]:
                    switch(groups[name], arrays[f"{name}.threshold"], arrays[f"{name}.bias"])
                elif step == layer["depth"] + timesteps:
                    rest = np.zeros(layer["neurons"])
                    switch(groups[name], rest + SILENT, rest)
            done = chip.sim(1, spike_trace=True, perf_trace=True, timing_model="simple")
            fired = [address for address in done["spike_trace"][0] if address.group_name != "input"]
            for address in fired:
                spikes[address.group_name][step - depth[address.group_name], sample, address.neuron_offset] = True
            inputs = int(frames[step, sample].sum()) if step < timesteps else 0
            found = {f"{unit} energy": joules for unit, joules in done["energy"].items()}
            found |= {
                "synaptic events": done["spikes"],
                "packets": done["packets_sent"],
                "updates": done["neurons_updated"] - inputs,
                "spikes": done["neurons_fired"] - inputs,
                "hops": done["perf_trace"]["hops"][0],
                "seconds": done["sim_time"],
            }
            totals = {name: totals.get(name, 0) + value for name, value in found.items()}
    means = {name: value / frames.shape[1] for name, value in totals.items()}
    np.savez(folder / "result.npz", **spikes)
    (folder / "result.json").write_text(json.dumps({"steps": steps, "means": means}))


def build(job: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """The chip with the network on it; the inputs stand on cores of their own, behind the others."""
    arch, net = sanafe.load_loihi(), sanafe.Network()
    cores = [core for tile in arch.tiles for core in tile.cores]

    def place(neuron: Any, core: int) -> None:
        if core >= len(cores):
            raise ValueError(f"the network and its inputs need more than the {len(cores)} cores of the chip")
        neuron.map_to_core(cores[core])

    size = arrays["input"].shape[2]
    groups = {"input": net.create_neuron_group("input", size)}
    for index in range(size):
        unit = f"loihi_inputs[{index % INPUTS_PER_CORE}]"
        groups["input"].neurons[index].set_attributes(soma_hw_name=unit, model_attributes={"spikes": [False]})
        place(groups["input"].neurons[index], job["free_core"] + index // INPUTS_PER_CORE)
    for layer in job["layers"]:
        name = layer["name"]
        group = net.create_neuron_group(
            name,
            layer["neurons"],
            model_attributes={"threshold": SILENT, "reset_mode": layer["reset"], "leak_decay": layer["keep"]},
            soma_hw_name="loihi_lif",
            default_synapse_hw_name=layer["synapse"],
            default_dendrite_hw_name="loihi_dendrites",
            log_spikes=True,
        )
        for neuron, core in zip(group.neurons, arrays[f"{name}.core"].tolist(), strict=True):
            place(neuron, core)
        groups[name] = group
    for index, (source, target) in enumerate(job["edges"]):
        ends, weight = arrays[f"edge{index}.ends"], arrays[f"edge{index}.weight"]
        groups[source].connect_neurons_sparse(
            groups[target], {"w": weight.astype(float).tolist()}, list(map(tuple, ends.tolist()))
        )
    chip = sanafe.SpikingChip(arch)
    chip.load(net)
    return chip


def switch(neurons: Any, thresholds: np.ndarray, biases: np.ndarray) -> None:
    """Gives every neuron of a layer its threshold and bias."""
    for neuron, threshold, bias in zip(neurons, thresholds.tolist(), biases.tolist(), strict=True):
        neuron.set_attributes(model_attributes={"threshold": float(threshold), "bias": float(bias)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
