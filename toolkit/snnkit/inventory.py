"""What there is to choose from: exporters, targets, energy models, chips, models, data sets."""

from snnkit import plugins
from snnkit.errors import UsageError, did_you_mean

KINDS = ("exporters", "targets", "energy-models", "chips", "models", "datasets")


def inventory(kind: str) -> list[tuple[str, str]]:
    """Names of a kind, each with a line about it; raises :class:`UsageError` for an unknown kind."""
    match kind:
        case "exporters":
            return [(name, _plugin(plugins.exporter(name))) for name in plugins.names("exporters")]
        case "targets":
            rows = []
            for name in plugins.names("targets"):
                missing = plugins.target(name).available()
                rows.append((name, f"not available: {missing}" if missing else _plugin(plugins.target(name))))
            return rows
        case "energy-models":
            from snnkit.analysis.energy import list_models, load_model

            models = [load_model(name) for name in list_models()]
            return [(model.name, f"{model.title} ({model.technology})") for model in models]
        case "chips":
            from snnkit.analysis.chips import list_chips, load_chip

            chips = [load_chip(name) for name in list_chips()]
            return [(chip.name, f"{chip.title} ({chip.source})") for chip in chips]
        case "models":
            from snnkit.training.models import STUDENTS, TEACHERS

            students = [(name, f"student: {_summary(model)}") for name, model in STUDENTS.items()]
            teachers = [(name, f"teacher: {_summary(model)}") for name, model in TEACHERS.items()]
            return [*students, *teachers, ("torchvision:NAME", "teacher: any classifier of torchvision, by its name")]
        case "datasets":
            from snnkit.training.data import DATASETS

            named = [(name, _summary(function)) for name, function in DATASETS.items()]
            return [*named, ("tonic:NAME", "any event data set of tonic, by its name")]
    raise UsageError(f"there is no kind '{kind}'", did_you_mean(kind, KINDS))


def _plugin(plugin: plugins.Exporter | plugins.Target) -> str:
    options = plugins.describe_options(plugin)
    return f"{_summary(plugin)} Options: {options}." if options else _summary(plugin)


def _summary(thing: object) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]
