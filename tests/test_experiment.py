import json
import string
import subprocess
import sys
from pathlib import PurePosixPath
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedloom.algorithms import ENTRIES
from fedloom.algorithms.baselines import BASELINES
from fedloom.algorithms.prompt_part import VARIANTS
from fedloom.config.schema import Data, Evaluate, Scenario, Strategy, Train
from fedloom.config.validation_errors import key_descriptions, schema_at
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import PUBLISHED_SETTINGS, default_methods, parse_method
from fedloom.experiment.recipes import load_experiment, recipes, sweep_keys
from fedloom.plugins.plugins import Plugins
from fedloom.runs.site_setup import clause_of
from fedloom.system.errors import UserError
from fedloom.tasks import PROMPTS

SCHEMA = Experiment.model_json_schema()
KEYS = [path for path, _ in key_descriptions(SCHEMA)]

MISTAKES = {
    "unknown key": ("train:\n  lrr: 1\n", ":2:3: train.lrr is not a known key. Did you mean train.lr?"),
    "unknown section": ("trian: {}\n", ":1:1: trian is not a known key. Did you mean train?"),
    "key of another section": ("rounds: 3\n", "Did you mean train.rounds?"),
    "key told by its description": ("train: {learning_rate: 1}\n", "Did you mean train.lr?"),
    "key given twice": ("seed: 1\nseed: 2\n", ":2:1: seed is given twice; the first is on line 1"),
    "another type": ("train: {lr: !!python/name:os.system x}\n", ":1:13: train.lr cannot be read as"),
    "text for a whole number": (
        'train: {rounds: "3"}\n',
        'train.rounds is "3", but must be a whole number ≥ 1',
    ),
    "fraction for a whole number": (
        "train: {rounds: 1.5}\n",
        "train.rounds is 1.5, but must be a whole number",
    ),
    "truth for a whole number": ("seed: true\n", "seed is true, but must be a whole number ≥ 0"),
    "whole number for truth": ("model: {network: 1}\n", "model.network is 1, but must be true or false"),
    "number for text": ("name: 3\n", "name is 3, but must be text"),
    "null": ("train: {lr: null}\n", "train.lr is null, but must be a number > 0"),
    "out of range": ("data: {test_share: 1.0}\n", "data.test_share is 1.0, but must be a number > 0 and < 1"),
    "out of range or null": ("train: {clip: 0}\n", "train.clip is 0, but must be a number > 0 or null"),
    "not finite": ("train: {lr: .inf}\n", "train.lr is Infinity, but must be a number > 0, and finite"),
    "choice": (
        "strategy: {name: loar}\n",
        "one of lora, connector, both, two-stage, share-connector, share-lora. Did you mean lora?",
    ),
    "rounds of stages there are not": (
        "strategy: {name: two-stage, stage_rounds: [1]}\n",
        "strategy.stage_rounds needs one number for each of the 2 stages of two-stage, not 1",
    ),
    "section that is none": ("strategy: both\n", "strategy is"),
    "empty section": (
        "gate:\n",
        "admission is null, but must be a mapping with keys from max_norm, max_ratio",
    ),
    "list that is none": ("methods: fedavg\n", 'methods is "fedavg", but must be a list'),
    "empty list": ("methods: []\n", "methods is an empty list, but must be a list"),
    "data set": ("data: {name: emojy}\n", '"emojy" is not a known data set. Did you mean emoji?'),
    "method": (
        "methods: [fedavg, fedagv]\n",
        ':1:19: methods[1]: "fedagv" is not a known method. Did you mean',
    ),
    "modifier": ("methods: [fedavg+promt]\n", '"promt" is not a known part. Did you mean prompt?'),
    "modifier twice": ("methods: [fedavg+prompt+prompt]\n", "names a part twice"),
    "nothing to modify": ("methods: [zero-shot+prompt]\n", "zero-shot trains no adapter"),
    "method twice": (
        "methods: [fedavg+prompt+adaptive, fedavg+adaptive+prompt]\n",
        ':1:35: methods[1]: "fedavg+adaptive+prompt" repeats "fedavg+prompt+adaptive"',
    ),
    "folder name": ("name: ../up\n", "cannot name a folder"),
    "cohort": ("train: {cohort: 6}\n", ":1:9: train.cohort is 6, but scenario.clients is 5"),
    "image clients": (
        "scenario: {image_clients: 6}\n",
        "scenario.image_clients is 6, but scenario.clients is 5",
    ),
    "partition that mode: published cannot draw": (
        "mode: published\nscenario: {partition: iid}\n",
        ":2:12: scenario.mode is published, but there is no published procedure for scenario.partition iid with "
        "scenario.pattern aligned; there is one for dirichlet with any pattern, and for by_source with cross or hybrid. "
        "To use corrected draws under mode: published, set scenario.mode: corrected",
    ),
    "section that is none under mode: published": (
        "mode: published\nscenario: 5\n",
        ":2:11: scenario is 5, but must be a mapping",
    ),
    "folder without root": ("data:\n  name: folder\n", ":2:3: data.root is missing"),
    "published data without root": ("data:\n  name: slake\n", "data.name slake needs the folder"),
    "variant of no data set": (
        "data: {name: slake, root: x, variant: de}\n",
        "data.variant is de, but for the data set slake it must be one of all, en, zh",
    ),
    "variant where there are none": (
        "data: {variant: en}\n",
        "data.variant is en, but for the data set emoji it must be left out, because it has no variants",
    ),
    "task of another data set": ("data: {task: vqa}\n", "left out, because it has only one task"),
    "main is not compared": ("main: fedprox\n", 'main is "fedprox", but must be null or a federated method'),
    "main is not federated": ("main: local\n", 'main is "local", but must be null or a federated method'),
    "algorithm": ("algorithms: {fedadm: {}}\n", "Did you mean fedadam?"),
    "argument": ("algorithms: {fedadam: {lrr: 1}}\n", ":1:24: algorithms.fedadam"),
    "value of an argument": ("algorithms: {fedadam: {lr: fast}}\n", ":1:24: algorithms.fedadam.lr"),
    "argument out of range": ("algorithms: {fedavg: {lr: -1}}\n", ":1:23: algorithms.fedavg"),
    "argument that is a list": (
        "algorithms: {fedavg: {lr: [1]}}\n",
        "algorithms.fedavg.lr is [1]; it must be a number",
    ),
    "argument of adaptive": ("algorithms: {adaptive: {muu: 1}}\n", "Did you mean mu?"),
    "value for adaptive": (
        "algorithms: {adaptive: {skip: 0.5}}\n",
        "algorithms.adaptive.skip is 0.5; it must be a whole number",
    ),
    "argument of prompt": (
        "algorithms: {prompt: {varient: none}}\n",
        "Did you mean variant?",
    ),
    "variant of prompt": (
        "algorithms: {prompt: {variant: strickt}}\n",
        ":1:23: algorithms.prompt: there is no variant 'strickt'",
    ),
    "prompt": ("evaluate: {prompt: relax}\n", "Did you mean relaxed?"),
    "not a mapping": ("- 1\n", "the experiment is a list, but must be a mapping"),
    "nothing": ("# all commented out\n", "the file is empty"),
}


def told(text: str, tmp_path, *overrides: str) -> list[str]:
    """Return the lines of the mistakes in an experiment."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_experiment(str(path), overrides)
    head, *lines = str(caught.value).split("\n  ")
    assert f"in {path}" in head
    return lines


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_reported_once_with_its_place_and_what_is_right(case, tmp_path):
    text, wanted = MISTAKES[case]
    lines = told(text, tmp_path)
    assert len(lines) == 1, lines
    assert wanted in lines[0]
    assert lines[0].startswith(f"{tmp_path / 'mine.yaml'}:")


def test_all_mistakes_are_reported_at_once_in_order(tmp_path):
    text = (
        "sede: 1\ndata: {name: emojy}\ntrain:\n  lr: -1\n  cohort: 3\n  rounds: x\n  lr: 2\n"
        "methods: [fedavg, fedagv, fedavg+promt]\nalgorithms: {fedadam: {lr: fast, tua: 1}}\n"
    )
    lines = told(text, tmp_path, "admission.max_ratio=0", "trian.lr=3", "x")
    places = [line.removeprefix(f"{tmp_path / 'mine.yaml'}:").split(": ")[0] for line in lines]
    in_file = ["1:1", "2:14", "4:7", "6:11", "7:3", "8:19", "8:27", "9:24", "9:34"]
    assert places == [*in_file, "--set x", "--set admission.max_ratio", "--set trian.lr"]


def test_compiled_layers_need_one_process_and_no_dropout(tmp_path):
    text = "engine: {compile: true, workers: 2}\nstrategy: {dropout: 0.1}\n"
    workers, dropout = told(text, tmp_path)
    assert "engine.workers is 2, but engine.compile needs 1" in workers
    assert "strategy.dropout is 0.1, but engine.compile needs 0" in dropout
    assert Experiment(engine={"compile": True}).engine.compile


@pytest.mark.parametrize("key", ["data.validation", "engine.workers", "engine.side_by_side"])
@pytest.mark.parametrize("value", ["true", "-1", "nan", "null", "foo", "[1]", "{a: 1}"])
def test_a_value_that_is_neither_a_number_nor_the_word_is_reported_once(key, value):
    with pytest.raises(
        UserError, match=rf"one mistake in [^\n]*\n[^\n]*{key} is [^\n]*, but must be a [^\n]* or \w+[^\n]*$"
    ):
        load_experiment("pooled", [f"{key}={value}"])


def test_a_conflict_with_a_mistaken_value_is_not_reported(tmp_path):
    lines = told('scenario: {clients: "9"}\ntrain: {cohort: 8}\n', tmp_path)
    assert len(lines) == 1
    assert "scenario.clients" in lines[0]


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_a_mistyped_key_is_located_and_the_right_one_suggested(path, tmp_path):
    *around, key = path
    typos = {
        f"{key}{key[-1]}",
        f"{key}x",
        *(key[:at] + key[at + 1 :] for at in range(len(key)) if len(key) > 3),
    }
    siblings = {str(other[-1]) for other in KEYS}
    for typo in sorted(typos - siblings - {""}):
        lines = told(
            "".join(f"{'  ' * n}{part}:\n" for n, part in enumerate(around))
            + f"{'  ' * len(around)}{typo}: 1\n",
            tmp_path,
        )
        assert len(lines) == 1
        line, column = len(around) + 1, 2 * len(around) + 1
        assert f":{line}:{column}: {'.'.join([*around, typo])} is not a known key" in lines[0]
        assert f"Did you mean {'.'.join(path)}?" in lines[0]


def test_numbers_are_typed_by_the_schema(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {lr: 3e-4, clip: 2, weight_decay: 1E-2}\nname: '7'\n")
    experiment = load_experiment(
        str(path), ["train.rounds=2", "name=2024", "methods=[fedavg, local]", "train.clip="]
    )
    assert experiment.train.lr == 3e-4
    assert experiment.train.weight_decay == 0.01
    assert experiment.train.rounds == 2
    assert experiment.train.clip is None
    assert experiment.name == "2024"
    assert experiment.methods == ("fedavg", "local")


def test_overrides_reach_arguments_of_algorithms():
    experiment = load_experiment("smoke", ["algorithms.fedadam.lr=0.5", "algorithms.adaptive.mu=1"])
    assert experiment.algorithms["fedadam"] == {"lr": 0.5}
    assert experiment.arguments("adaptive") == {"mu": 1}


@pytest.mark.parametrize("name", [name for name in recipes() if not sweep_keys(name)])
def test_every_recipe_resolves_and_carries_its_own_name(name):
    overrides = ["data.root=somewhere"] if name == "own-data" else []
    experiment = load_experiment(name, overrides)
    assert experiment.name == name
    first = recipes()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


def test_own_data_reports_what_is_missing():
    with pytest.raises(UserError, match=r"own-data\.yaml.*data\.root is missing"):
        load_experiment("own-data")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nope.yaml", None, "neither a file nor a recipe"),
        ("x.yaml", b"\xff\xfe", "UTF-8"),
        ("", None, "is a folder"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_mistake(name, content, message, tmp_path):
    path = tmp_path / name if name else tmp_path
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_experiment(str(path))


def test_a_mistyped_recipe_is_guessed():
    with pytest.raises(UserError, match="Did you mean quickstart"):
        load_experiment("quikstart")


experiments = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(string.ascii_letters, min_size=1, max_size=5),
        "seed": st.integers(0, 2**40),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "lr": st.floats(1e-12, 10),
                "clip": st.none() | st.floats(1e-3, 9),
                "rounds": st.just(3),
            },
        ),
        "methods": st.lists(st.sampled_from(default_methods()), min_size=1, unique=True),
        "algorithms": st.fixed_dictionaries({}, optional={"adaptive": st.just({"mu": 1, "skip": 0})}),
        "model": st.fixed_dictionaries(
            {"path": st.sampled_from(["ä b", "a: b", "#", "'\"", "null", "3", "\U0001f600"])}
        ),
    },
)


@given(experiments)
def test_json_and_back_is_the_same_experiment(values):
    experiment = Experiment(**values)
    again = Experiment.from_json(experiment.to_json())
    assert again == experiment
    assert again.digest == experiment.digest
    assert Experiment(**json.loads(experiment.to_json())) == experiment


@given(experiments, experiments)
def test_digests_are_equal_exactly_when_all_but_the_name_is(first, second):
    one, two = Experiment(**first), Experiment(**second)
    same = one.model_copy(update={"name": "x"}) == two.model_copy(update={"name": "x"})
    assert (one.digest == two.digest) == same


def test_a_whole_number_in_place_of_a_number_gives_the_same_digest():
    assert Experiment(train={"lr": 1}).digest == Experiment(train={"lr": 1.0}).digest


def another(path):
    """Return a legal value for a key that is not its default."""
    part = schema_at(SCHEMA, path)
    options = part.get("anyOf", [part])
    default, kinds = part["default"], {kind.get("type") for kind in options}
    if choices := [choice for option in options for choice in option.get("enum", ())]:
        return next(choice for choice in choices if choice != default)
    if "boolean" in kinds:
        return not default
    if "integer" in kinds:
        return (default if isinstance(default, int) else 0) + 1
    if "number" in kinds:
        return (default or 0.5) / 2
    if "array" in kinds:
        items = next(option["items"] for option in options if option.get("type") == "array")
        return [1] if items["type"] == "integer" else ["q_proj"]
    if constants := [option["const"] for option in options if "const" in option]:
        return constants[0]
    return "digits"


@pytest.mark.parametrize("path", [path for path in KEYS if len(path) == 2], ids=".".join)
def test_the_digest_sees_every_key(path):
    section, key = path
    # No data set has both tasks and variants.
    base = {"data": {"name": "slake", "root": "x"} if key == "variant" else {"name": "shapes"}}
    if key in ("encoder", "llm"):  # neither stands alone
        base["model"] = {"encoder": "a", "llm": "b"}
    if key == "connector_weights":
        base["model"] = {"connector": "mlp2"}
    if key in ("address", "gpus"):
        base["engine"] = {"backend": "ray"}
    if path == ("evaluate", "round"):
        base["data"]["validation"] = 0.1
    if path == ("evaluate", "metrics"):
        base["plugins"] = [Plugins.of(metrics={another(path)[0]: lambda example, answer: 1.0})]
    value = {"variant": "en", "precision": "bfloat16"}.get(key) or another(
        path
    )  # float32 is what auto means here
    changed = {**base, section: {**base.get(section, {}), key: value}}
    differs = Experiment(**changed).digest != Experiment(**base).digest
    assert differs is (section not in ("engine", "report"))  # speed and looks do not make it another run


def test_an_experiment_is_frozen_and_checked_in_python_too():
    experiment = Experiment(model={"path": PurePosixPath("a/b")})
    assert experiment.model.path == "a/b"
    with pytest.raises(ValidationError):
        experiment.seed = 3
    with pytest.raises(ValidationError):
        experiment.train.lr = 3
    for wrong in ({"train": {"rounds": "3"}}, {"train": {"lr": True}}, {"sede": 1}, {"main": "fedprox"}):
        with pytest.raises(UserError, match=r"one mistake in fedloom\.Experiment"):
            Experiment(**wrong)


def test_every_key_is_described_in_one_sentence():
    for path, text in key_descriptions(SCHEMA):
        assert text.endswith("."), path
        assert ". " not in text, path


def test_parse_method_parses_names():
    assert parse_method("fedavg+adaptive+prompt") == ("fedavg", ("prompt", "adaptive"))
    assert parse_method("scaffold") == ("scaffold", ())
    assert all(not parse_method(name).federated for name in BASELINES)
    assert all(parse_method(f"local+{name}").parts == (name,) for name in ("prompt", "adaptive", "proximal"))
    for wrong in ("", "+prompt", "fedavg+", "fedavg+linear", "prompt", "fedavg prompt"):
        with pytest.raises(UserError, match=r"method|part|added"):
            parse_method(wrong)


def test_the_exported_method_is_main_or_the_first_federated():
    assert Experiment(methods=["local", "fedprox", "fedavg"]).exported == "fedprox"
    assert Experiment(methods=["local", "fedprox", "fedavg"], main="fedavg").exported == "fedavg"
    assert Experiment(methods=["local"]).exported is None


def choices(section, key) -> set[str]:
    annotation = section.model_fields[key].annotation
    assert get_origin(annotation) is Literal
    return set(get_args(annotation))


def test_choices_are_those_of_the_packages():
    from fedloom.algorithms import SERVERS
    from fedloom.data import DATASETS
    from fedloom.scenarios import PARTITIONS, PATTERNS
    from fedloom.tuning.strategies import LINEARS, SEQUENCES

    assert choices(Scenario, "partition") == set(PARTITIONS)
    assert choices(Scenario, "pattern") == set(PATTERNS)
    assert choices(Strategy, "name") == set(SEQUENCES)
    assert Strategy().targets == LINEARS
    assert Data().name in DATASETS
    assert {parse_method(name).base for name in default_methods()} <= {*BASELINES, *SERVERS}
    assert not set(BASELINES) & set(SERVERS)


def test_neither_the_package_nor_a_bad_key_loads_torch():
    code = (
        "import sys, fedloom\n"
        "assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "from fedloom.types import UserError\n"
        "try: fedloom.load_experiment('smoke', ['train.lrr=1'])\n"
        "except UserError: pass\n"
        "else: raise SystemExit('no error')\n"
        "assert fedloom.load_experiment('smoke').digest\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_prompts_of_an_experiment_are_those_of_the_tasks():
    assert choices(Evaluate, "prompt") == set(VARIANTS) == set(PROMPTS)
    prompted = parse_method("fedavg+prompt")
    assert clause_of(Experiment(), prompted) == PROMPTS["agnostic"]
    chosen = Experiment(algorithms={"prompt": {"variant": "strict"}})
    assert clause_of(chosen, prompted) == PROMPTS["strict"] != PROMPTS["agnostic"]


def test_the_mode_sets_arguments_that_are_not_given():
    given = {"algorithms": {"fedadam": {"lr": 0.5}, "adaptive": {"skip": 1}}}
    corrected, published = Experiment(**given), Experiment(**given, mode="published")
    assert corrected.arguments("fedadam") == {"lr": 0.5}
    assert corrected.arguments("fedyogi") == {}
    assert published.arguments("fedadam") == {**ENTRIES["fedadam"].published, "lr": 0.5}
    assert published.arguments("scaffold") == {}
    assert corrected.arguments("adaptive") == {"skip": 1}
    assert published.arguments("adaptive") == {**ENTRIES["adaptive"].published, "skip": 1}


def settings(experiment):
    """Return the values of an experiment that its mode decides where they are not given."""
    whole = experiment.model_dump(mode="json")
    return {section: {key: whole[section][key] for key in own} for section, own in PUBLISHED_SETTINGS.items()}


DEFAULTS = settings(Experiment())
SECTIONS = {"scenario": Scenario, "train": Train, "strategy": Strategy}


def test_the_mode_sets_settings_that_are_not_given():
    assert settings(Experiment(mode="corrected")) == DEFAULTS
    published = Experiment(mode="published", scenario={"alpha": 5.0}, train={"rounds": 2})
    assert settings(published) == PUBLISHED_SETTINGS
    assert (published.scenario.alpha, published.scenario.partition, published.train.rounds) == (
        5.0,
        "dirichlet",
        2,
    )


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section, own in PUBLISHED_SETTINGS.items() for key in own]
)
@pytest.mark.parametrize("made", [False, True])
def test_a_given_setting_overrides_the_mode(section, key, made):
    given = {key: DEFAULTS[section][key]}
    decided = settings(
        Experiment(mode="published", **{section: SECTIONS[section](**given) if made else given})
    )
    assert decided.pop(section) == {**PUBLISHED_SETTINGS[section], **given}
    assert decided == {name: own for name, own in PUBLISHED_SETTINGS.items() if name != section}


def test_the_saved_experiment_and_the_digest_have_the_settings_of_the_mode():
    published = Experiment(mode="published")
    assert Experiment.from_json(published.to_json()) == published
    assert published.digest == Experiment(mode="published", **PUBLISHED_SETTINGS).digest
    # What an experiment was before it had the switch is still what its record says.
    assert settings(Experiment.from_json(json.dumps({"mode": "published", **DEFAULTS}))) == DEFAULTS


def test_a_changed_mode_changes_its_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mode: published\ntrain: {schedule: constant}\n", encoding="utf-8")
    expected = {section: dict(own) for section, own in DEFAULTS.items()}
    expected["train"]["schedule"] = "constant"
    assert settings(load_experiment(str(path), ["mode=corrected"])) == expected


@pytest.mark.parametrize("name", [name for name in ENTRIES if ENTRIES[name].published])
def test_published_arguments_are_arguments(name):
    Experiment(mode="published", algorithms={name: dict(ENTRIES[name].published)})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("evaluate: {round: best}\n", "evaluate.round is best, but data.validation is 0"),
        (
            "data: {validation: 0.1}\nevaluate: {round: best, every: 0}\n",
            "evaluate.round is best, but evaluate.every is 0",
        ),
    ],
)
def test_a_best_round_without_validation_is_refused_in_one_message(text, told):
    with pytest.raises(UserError) as refused:
        Experiment.from_json(text)
    assert told in str(refused.value)
    assert str(refused.value).startswith("one mistake in")
