import pytest

from gemma_ft.config.checks import find_problems
from gemma_ft.config.compose import compose, config_yaml, load_config
from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.config.rows import ColumnsConfig, DataSource, MixturePart
from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import ConfigError


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    return str(path)


def mixture(*words):
    return compose("model=tiny", "dataset=mixture", *words).dataset.mixture


def test_sources_are_named_on_the_command_line(rows):
    found = mixture(
        f"dataset.mixture.mine.path={rows}",
        "dataset.mixture.mine.weight=0.3",
        "dataset.mixture.mine.columns.text=body",
        "dataset.mixture.chats.source=hub",
        "dataset.mixture.chats.path=owner/chats",
        "dataset.mixture.chats.split=train[:5%]",
        "dataset.mixture.chats.max_rows=7",
    )
    assert found == {
        "mine": MixturePart(path=rows, weight=0.3, columns=ColumnsConfig(text="body")),
        "chats": MixturePart(source=DataSource.hub, path="owner/chats", split="train[:5%]", max_rows=7),
    }


def test_sources_are_written_as_one_mapping_too(rows):
    found = mixture(f"dataset.mixture={{mine:{{path:{rows},weight:2,columns:{{text:body}}}}}}")
    assert found == {"mine": MixturePart(path=rows, weight=2.0, columns=ColumnsConfig(text="body"))}
    with pytest.raises(ConfigError, match=r"mixture\.mine\.wieght=2 is no key of a run\. Write dataset\.mix"):
        mixture(f"dataset.mixture={{mine:{{path:{rows},wieght:2}}}}")


def test_a_recipe_names_sources_and_the_command_line_beats_it(rows, tmp_path):
    recipe = tmp_path / "both.yaml"
    recipe.write_text(
        "# @package _global_\n# Two sources\ndefaults:\n  - override /dataset: mixture\n"
        "  - override /model: tiny\ndataset:\n  mixture_weights: rows\n  mixture:\n"
        f"    a: {{path: {rows}, weight: 2}}\n    b: {{path: {rows}, columns: {{text: body}}}}\n"
    )
    dataset = compose(f"recipe={recipe}", "dataset.mixture.a.weight=5").dataset
    assert {name: part.weight for name, part in dataset.mixture.items()} == {"a": 5.0, "b": 1.0}
    assert dataset.mixture["b"].columns.text == "body"
    assert dataset.mixture_weights == "rows"


def test_a_mixture_survives_the_config_file_of_its_run(rows, tmp_path):
    config = compose("model=tiny", "dataset=mixture", f"dataset.mixture.mine.path={rows}")
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config))
    assert load_config(path) == config
    again = load_config(path, "dataset.mixture.mine.weight=3")
    assert again.dataset.mixture["mine"] == MixturePart(path=rows, weight=3.0)


def test_a_source_below_the_home_folder_is_written_out(rows, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mixture("dataset.mixture.mine.path=~/rows.jsonl")["mine"].path == rows


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("dataset.mixture.mine.paht=x", r"paht=x is no key of a run\. Write dataset\.mixture\.mine\.path\."),
        ("dataset.mixture.mine=x", r"mine=x is no key of a run\. Name a source and its key, like"),
        ("dataset.mixture=x", r"dataset\.mixture=x is no key of a run\. Name a source and its key, like"),
        ("dataset.mixture.mine.weight=much", r"mixture\.mine\.weight=much must be a number\."),
        ("dataset.mixture.mine.weight=0", r"mixture\.mine\.weight=0\.0 must be above 0 and finite\."),
        ("dataset.mixture.mine.source=disk", r"source=disk must be one of hub, local, package\."),
        ("dataset.mixture.mine.path=/no/such", r"mixture\.mine\.path=/no/such does not exist\."),
        ("dataset.mixture.mine.split=train[5%]", r"mine\.split=train\[5%\] is no split\. Write it like"),
        ("dataset.mixture.mine.weight=1,2", r"weight=1,2 gives several values\. Add --multirun"),
        ("dataset.path=owner/name", r"dataset\.path=owner/name would be ignored beside dataset\.mixture\."),
        ("dataset.eval_split=test", r"dataset\.eval_split=test would be ignored beside dataset\.mixture\."),
        ("dataset.split=train[:5]", r"dataset\.split=train\[:5\] would be ignored beside dataset\.mixture\."),
        ("dataset.columns.text=body", r"dataset\.columns would be ignored beside dataset\.mixture\."),
        ("dataset.mixture.mine.revision=main", r"mine\.revision=main is for the hub, but dataset\.mixture\."),
        ("dataset.mixture.mine.config=chats", r"mine\.config=chats is for the hub, but dataset\.mixture"),
        ("dataset.mixture_weights=words", r"must be one of tokens, rows\."),
    ],
)
def test_what_cannot_work_in_a_mixture_is_told(rows, word, line):
    with pytest.raises(ConfigError, match=line):
        mixture(f"dataset.mixture.mine.path={rows}", word)


def test_a_mixture_without_sources_is_refused():
    with pytest.raises(ConfigError, match=r"^dataset\.path= is empty\. Name your file"):
        mixture()


def test_a_mixture_built_in_python_is_checked(rows):
    parts = {"a": MixturePart(path=rows, weight=-1, columns=ColumnsConfig(prompt="q", completion="q"))}
    found = find_problems(RunConfig(name="x", dataset=DatasetConfig(mixture=parts)))
    assert found == [
        "dataset.mixture.a.columns.completion=q is dataset.mixture.a.columns.prompt as well. "
        "Name two columns.",
        "dataset.mixture.a.weight=-1 must be above 0 and finite. Use e.g. 0.5.",
    ]


def test_a_mixtures_weight_can_be_swept(rows, tmp_path, monkeypatch):
    from gemma_ft.config.compose import sweep

    monkeypatch.chdir(tmp_path)
    seen = []
    words = ["model=tiny", "dataset=mixture", f"dataset.mixture.mine.path={rows}"]
    sweep([*words, "dataset.mixture.mine.weight=0.5,2"], lambda c: seen.append((c.name, c.dataset.mixture)))
    assert [parts["mine"].weight for _, parts in seen] == [0.5, 2.0]
    assert len({name for name, _ in seen}) == 2


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("dataset.mixture.b-1.path=x", r"Name the source with letters, digits and _, e\.g\. b_1\."),
        ("dataset.mixture.mine.columns.promt=q", r"Write dataset\.mixture\.mine\.columns\.prompt\."),
        ("dataset.source=hub", r"dataset\.source=hub would be ignored beside dataset\.mixture\."),
    ],
)
def test_what_was_meant_in_a_mixture_is_guessed(rows, word, line):
    with pytest.raises(ConfigError, match=line):
        mixture(f"dataset.mixture.mine.path={rows}", word)
