"""Import modules under the names that they had in version 0.1: their replacements are used, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

MODULES = {
    "data.multitask": "data.fedvlmbench_multitask",
    "data.medical": "data.fedmllm_medical",
    "progress": "system.progress",
    "algorithms.adaptive": "algorithms.adaptive_regularizer",
    "algorithms.base": "algorithms.algorithm",
    "algorithms.layers": "algorithms.layer_budgets",
    "algorithms.prompt": "algorithms.prompt_part",
    "algorithms.published": "algorithms.published_faults",
    "algorithms.ranks": "algorithms.lora_ranks",
    "algorithms.robust": "algorithms.robust_helpers",
    "algorithms.rule": "algorithms.local_rule",
    "answering": "runs.evaluation",
    "axes": "experiment.grid_axes",
    "backends": "runs.train_in_backend",
    "cli_data": "cli.data_command",
    "cli_list": "cli.list_command",
    "cli_models": "cli.models_command",
    "cli_options": "cli.options",
    "cli_split": "cli.split_command",
    "cli_sweep": "cli.sweep_commands",
    "client.batch_probe": "client.gradient_probe",
    "client.evaluate": "client.answer_questions tasks.rendering",
    "client.job": "client.local_job",
    "client.memory": "client.client_memory",
    "client.probes": "client.client_measurements",
    "client.schedule": "client.learning_rate",
    "client.train": "client.local_training",
    "code_digest": "plugins.code_digest",
    "conflicts": "experiment.conflicts",
    "data.base": "data.loading",
    "data.boxes": "data.bounding_boxes",
    "data.check": "data.check_folder",
    "data.clients": "data.fedvlmbench_client_folders",
    "data.drawing": "data.svg_drawing",
    "data.fields": "data.record_fields",
    "data.folder": "data.own_folder",
    "data.joined": "data.joined_data_sets",
    "data.pictures": "data.images",
    "data.prepared": "data.fedmllm_client_folders",
    "data.records": "data.record_files",
    "data.salvage": "data.image_repair",
    "data.same": "data.duplicates",
    "data.shapes": "data.drawn_shapes",
    "data.source": "data.published_data_set",
    "data.talks": "data.conversations",
    "document": "config.yaml_document",
    "engine.limits": "engine.update_bounds",
    "engine.machine": "engine.machine_choices",
    "engine.memory": "system.allocator",
    "engine.ordering": "engine.client_order",
    "engine.remote": "engine.remote_site",
    "engine.store": "engine.checkpoints",
    "engine.workers": "engine.worker_processes",
    "failures": "system.errors",
    "folder": "runs.run_folder runs.run_lock",
    "framing": "wire.framing",
    "grid": "experiment.grid",
    "hashes": "system.file_hashes",
    "identity": "runs.run_identity",
    "interrupts": "system.signals",
    "manifest": "system.manifest",
    "measure": "runs.modality_slices",
    "messages": "wire.messages",
    "methods": "experiment.methods algorithms.baselines",
    "mistakes": "config.validation_errors",
    "models.added": "models.added_models",
    "models.assemble": "models.assemble_model",
    "models.batch": "models.batches",
    "models.checks": "models.compatibility",
    "models.compiled": "models.compiled_layers",
    "models.crossed": "models.mllama",
    "models.families": "models.family_table",
    "models.family": "models.family_interface",
    "models.features": "models.feature_cache",
    "models.files": "models.folder_checks",
    "models.fitness": "models.example_checks",
    "models.forwards": "models.replaced_forwards",
    "models.gemmas": "models.gemma",
    "models.grids": "models.qwen_vl",
    "models.inputs": "models.decoder_inputs",
    "models.judge": "models.judge_model",
    "models.load": "models.load_model",
    "models.memo": "models.memory_cache",
    "models.ovis": "models.ovis2",
    "models.parts": "models.module_paths",
    "models.patches": "models.encoder_free",
    "models.published": "models.teacher_forcing",
    "models.quantized": "models.gguf_files",
    "models.reading": "models.last_layer",
    "models.recompute": "models.gradient_checkpointing",
    "models.render": "models.chat_template_process",
    "models.resampled": "models.query_connectors",
    "models.sentences": "models.sentence_embeddings",
    "models.source": "models.hub",
    "models.templates": "models.chat_templates",
    "models.texts": "models.text_only",
    "models.towers": "models.vision_towers",
    "models.weights": "models.check_weights",
    "outcomes": "runs.method_results",
    "plugin_import": "plugins.import_file",
    "plugin_section": "experiment.plugins_key",
    "processes": "system.processes",
    "record": "run_log system.json_files system.timing",
    "report.chance": "report.confidence_intervals",
    "report.choices": "report.sweeps.chosen_settings",
    "report.clients": "report.client_charts",
    "report.compare": "report.compare_runs",
    "report.figures": "report.charts",
    "report.gain": "report.federation_gain",
    "report.loading": "report.adapter_loading_code",
    "report.page": "report.run_page",
    "report.paired": "report.significance",
    "report.paired_figures": "report.sweeps.difference_charts",
    "report.paired_readings": "report.sweeps.observations",
    "report.paired_sweep": "report.sweeps.axis_comparisons",
    "report.paired_tables": "report.sweeps.comparison_tables",
    "report.prose": "report.findings",
    "report.records": "report.run_results",
    "report.scores": "report.score_tables report.terminal_summary",
    "report.split": "report.split_table",
    "report.svg": "report.svg_elements",
    "report.sweep_figures": "report.sweeps.sweep_charts",
    "report.sweep_page": "report.sweeps.sweep_page",
    "report.sweep_tables": "report.sweeps.sweep_tables",
    "report.timing": "report.time_chart",
    "report.validation": "report.validation_section",
    "runner": "runs.single_run runs.run_setup",
    "scenarios.card": "scenarios.heterogeneity_card",
    "scenarios.pattern": "scenarios.modality_pattern",
    "scenarios.published": "scenarios.published_draws",
    "scenarios.validation": "scenarios.validation_part",
    "scratch": "system.temporary_folders",
    "sections": "config.schema config.engine_schema",
    "setting": "runs.run_context",
    "sites": "runs.site_setup",
    "startup": "system.garbage_collection",
    "sweep": "runs.sweep",
    "tasks.base": "tasks.task tasks.prompts",
    "tasks.choice": "tasks.multiple_choice",
    "tasks.linear": "tasks.linear_baseline",
    "tasks.overlap": "tasks.text_overlap",
    "tasks.published": "tasks.published_scoring",
    "tasks.scoring": "tasks.score_answers",
    "tasks.verdict": "tasks.llm_judge",
    "terminal": "system.terminal",
    "testing.bench": "testing.toy_clients",
    "training": "runs.train_method",
    "tuning.parts": "tuning.strategy_parts",
    "tuning.strategy": "tuning.strategies",
    "tuning.svd": "tuning.svd_start",
    "verify": "runs.verify_files",
}
"""Old module below fedloom → the modules that replace it."""

NAMES = {
    "SHIPPED": "BUNDLED",
    "REFERENCES": "BASELINES",
    "Gate": "Limits",
    "Record": "RunLog",
    "Picture": "LazyImage",
    "FilePicture": "FileImage",
    "ZipPicture": "ZipImage",
    "Run": "Training",
    "Setting": "RunContext",
    "judge": "answer_examples",
    "judge_rows": "answer_rows",
    "linear_reference": "linear_baseline",
    "commit": "write_checkpoint",
    "last_commit": "last_checkpoint",
    "read_commit": "read_checkpoint",
    "told": "error_text",
}
"""Old → new name of a value in a module."""


class _Finder(MetaPathFinder):
    """Finder of old modules, the last one that Python asks."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        old = fullname.removeprefix("fedloom.")
        return spec_from_loader(fullname, _Old()) if fullname != old and old in MODULES else None


class _Hiding(ModuleType):
    """An old module, which Python puts in the place of a function of its package, and which is called as that function."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name)
        self._function = function

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function."""
        return self._function(*arguments, **named)


class _Old(Loader):
    """Loader of an old module, which looks up its names in the new ones."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return None, so that Python makes an empty module, or a callable one where it hides a function of its name."""
        package, _, name = spec.name.rpartition(".")
        function = vars(sys.modules[package]).get(name)
        return _Hiding(spec.name, function) if callable(function) else None

    def exec_module(self, module: ModuleType) -> None:
        """Make the module look up its names in those that replace it."""
        replacements = MODULES[module.__name__.removeprefix("fedloom.")].split()
        new = " and ".join(f"fedloom.{replacement}" for replacement in replacements)
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        vars(module)["__getattr__"] = partial(_attribute, module.__name__, replacements)


def _attribute(module: str, replacements: Sequence[str], name: str) -> Any:
    for replacement in replacements:
        new = import_module(f"fedloom.{replacement}")
        for candidate in (name, NAMES.get(name, name)):
            if candidate in vars(new):
                value = getattr(new, candidate)
                return value if name == candidate else _with_old_keys(value)
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def _with_old_keys(value: Any) -> Any:
    """Return a table of models with the old names of its rows too; anything else as it is."""
    from fedloom.config.old_spellings import NAMES as KEYS

    if not isinstance(value, Mapping):
        return value
    return {**value, **{old: value[new] for old, new in KEYS.items() if new in value}}


def install() -> None:
    """Make old names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
